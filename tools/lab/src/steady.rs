//! One TCP connection that lives until it is told to end, and whose every byte is compared. It shows whether
//! connections survive what is done to the hosts meanwhile.
use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    container::Container,
    namespace::join,
    stream::{BLOCK, PATIENCE, accept, fill},
};

/// The pause between two blocks. It leaves the machine's time to others.
const PAUSE: Duration = Duration::from_millis(20);

/// The connection between two containers.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<SteadyReport>>,
}

/// What arrived. All of it was as it was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SteadyReport {
    /// Bytes that arrived, each of them compared.
    pub bytes: u64,
    /// The longest time in which nothing arrived.
    pub longest_gap: Duration,
}

impl Steady {
    /// Connects one container to another, and starts sending.
    pub fn start(from: &Container, to: &Container) -> Result<Self> {
        let listener = to.namespace().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
        let target = (to.address(), listener.local_addr()?.port());
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = from.namespace().thread(move || {
            let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE)
                .with_context(|| format!("connect to {}:{}", target.0, target.1))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut block = vec![0; BLOCK];
            let mut number = 0;
            while !stopped.load(Ordering::Relaxed) {
                fill(&mut block, number);
                stream.write_all(&block).with_context(|| format!("send block {number}"))?;
                number += 1;
                thread::sleep(PAUSE);
            }
            Ok(number * BLOCK as u64)
        });
        let receiver = thread::spawn(move || receive(&listener));
        Ok(Self { stop, sender, receiver })
    }

    /// Ends the connection, and checks that all that was sent has arrived, and nothing else.
    pub fn finish(self) -> Result<SteadyReport> {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, received) = (join(self.sender), join(self.receiver));
        let (sent, received) = (sent?, received?);
        ensure!(sent == received.bytes, "{sent} bytes were sent, {} arrived", received.bytes);
        Ok(received)
    }
}

fn receive(listener: &TcpListener) -> Result<SteadyReport> {
    let mut stream = accept(listener)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut expected, mut block) = (vec![0; BLOCK], vec![0; BLOCK]);
    let mut report = SteadyReport::default();
    for number in 0.. {
        fill(&mut expected, number);
        let mut filled = 0;
        while filled < BLOCK {
            let asked = Instant::now();
            match stream.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(report),
                Ok(0) => bail!("the connection ended within block {number}"),
                Ok(length) => filled += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).with_context(|| format!("receive block {number}")),
            }
            report.longest_gap = report.longest_gap.max(asked.elapsed());
        }
        ensure!(block == expected, "block {number} differs from what was sent");
        report.bytes += BLOCK as u64;
    }
    Ok(report)
}
