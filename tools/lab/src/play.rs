//! `cargo xtask lab`: hosts to play with, until they are taken down.
use anyhow::{Result, bail, ensure};
use clap::{Args, Subcommand};
use overlay_lab::{self as lab, Lab, project};

use crate::demo;

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// Makes hosts with agents and containers, and says how to enter them.
    Up(Up),
    /// Removes what `lab up` and `demo --keep` made, and what a killed test left.
    Down {
        /// Name of a lab (`ov123n0`). Without it, every lab is removed whose process no longer runs.
        name: Option<String>,
    },
    /// Fails if there is anything that `lab down` would remove, and lists it.
    #[command(hide = true)]
    Leaks {
        /// Says nothing of these labs.
        #[arg(long, value_delimiter = ',')]
        except: Vec<String>,
    },
    /// Lists the labs whose process no longer runs, one in a line.
    #[command(hide = true)]
    Orphans,
}

#[derive(Args)]
pub(crate) struct Up {
    /// How many hosts.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=100))]
    hosts: u8,
}

pub(crate) fn play(command: &LabCommand) -> Result<()> {
    match command {
        LabCommand::Up(up) => {
            let overlay = project::build_overlay()?;
            let lab = Lab::new(lab::Options { hosts: up.hosts, keep: true, ..lab::Options::default() })?;
            let _hosts = demo::populate(&lab, &overlay, &lab::Store::folder(&lab), lab::Backend::Vxlan, &[])?;
            println!("{}", demo::how_to_enter(&lab));
            lab.keep();
            Ok(())
        }
        LabCommand::Down { name } => down(name.as_deref()),
        LabCommand::Orphans => {
            lab::orphans().iter().for_each(|name| println!("{name}"));
            Ok(())
        }
        LabCommand::Leaks { except } => {
            let labs = lab::orphans().into_iter().filter(|name| !except.contains(name));
            let leaks: Vec<_> = labs.flat_map(|name| lab::leaks(&name)).collect();
            ensure!(
                leaks.is_empty(),
                "left behind: {} (`cargo xtask lab down` removes it)",
                leaks.join(", ")
            );
            Ok(())
        }
    }
}

fn down(name: Option<&str>) -> Result<()> {
    let mut labs = lab::orphans();
    labs.retain(|lab| name.is_none_or(|name| name == lab));
    if labs.is_empty() {
        println!("there is no lab");
    }
    let mut failed = Vec::new();
    for name in labs {
        match lab::sweep(&name) {
            Ok(()) => println!("removed lab {name}"),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    if !failed.is_empty() {
        bail!("{}", failed.join("; "));
    }
    Ok(())
}
