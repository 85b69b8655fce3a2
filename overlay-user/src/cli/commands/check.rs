//! `overlay check`: tells what of this host suits the overlay, what does not, and what to do.
use anyhow::Result;

use super::output::Completion;
use crate::{
    cli::{
        check::{self, CheckSpec, Level},
        options::Check,
        table,
    },
    datapath::state::Record,
    host::{netlink::Netlink, subnet_env, underlay},
    model::{backend::Backend, fast_path::AskedFastPath},
};

pub(super) async fn check(options: &Check) -> Result<Completion> {
    let netlink = Netlink::open()?;
    let record = options.show.place.paths().record().ok().flatten();
    let underlay = underlay::choose(&netlink, &options.underlay.choice()).await;
    let spec = CheckSpec {
        underlay: underlay.as_ref().ok().map(|underlay| underlay.name.clone()),
        device: options.device.clone(),
        backend: record
            .as_ref()
            .and_then(|record| Backend::named(&record.backend))
            .unwrap_or(Backend::DEFAULT),
        subnet: record.as_ref().map(|record| record.subnet),
        address: underlay.as_ref().ok().map(|underlay| underlay.address),
        fast_path: record.as_ref().map_or(AskedFastPath::Auto, Record::fast_path),
        // Network is read from subnet.env, because the routes may show only a part of it.
        network: record.as_ref().and_then(|record| subnet_env::read(record.subnet_file.as_deref()?).network),
        bpf_root: options.show.place.bpf_root.clone(),
        pins: options.show.place.paths().pins,
    };
    let mut findings = check::check(&netlink, &spec).await?;
    if let Err(error) = underlay {
        findings.push(check::Finding {
            what: "underlay interface".into(),
            level: Level::Fail,
            detail: error.to_string(),
            remedy: "name one that suits with --iface".into(),
        });
    }
    if options.show.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        let rows = findings.iter().map(|finding| {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Fail => "FAIL",
            };
            vec![level.into(), finding.what.clone(), finding.detail.clone(), finding.remedy.clone()]
        });
        println!("{}", table::table(&["", "what", "as it stands", "what to do"], rows));
    }
    let worst = findings.iter().map(|finding| finding.level).max();
    Ok(if worst == Some(Level::Fail) { Completion::Problems } else { Completion::Done })
}
