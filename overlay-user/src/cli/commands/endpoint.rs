//! `overlay attach` and `overlay detach`.
use anyhow::{Result, bail};
use serde_json::json;

use crate::{
    agent::control::{self, Request, Response},
    cli::options::{Attach, Detach, Show},
};

pub(super) async fn attach(options: &Attach) -> Result<()> {
    let request = Request::Attach { address: options.address, port: options.port.clone(), mac: options.mac };
    done(&options.show, &request).await
}

pub(super) async fn detach(options: &Detach) -> Result<()> {
    done(&options.show, &Request::Detach { address: options.address }).await
}

/// Asks the agent to do something, and prints what it did.
pub(super) async fn done(show: &Show, request: &Request) -> Result<()> {
    let socket = control::socket_path(&show.place.paths());
    match control::ask(&socket, request).await? {
        Response::Done(what) if show.json => println!("{}", json!({ "done": what })),
        Response::Done(what) => println!("{what}"),
        Response::Error(why) => bail!(why),
        other => bail!("the agent gave an answer that does not fit: {other:?}"),
    }
    Ok(())
}
