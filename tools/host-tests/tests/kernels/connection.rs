//! One TCP connection between two containers that is held while agents come and go.
use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use overlay_lab::Container;

/// How many bytes each exchange carries in each direction.
const BYTES: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Both ends of the connection. A socket stays in the namespace in which it was made, whichever thread uses it.
pub struct Connection {
    ends: [TcpStream; 2],
    round: u8,
}

impl Connection {
    pub fn open(from: &Container, to: &Container) -> Result<Self> {
        let listener = to.namespace().enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
        let target = (to.address(), listener.local_addr()?.port()).into();
        let near = from.namespace().enter(move || Ok(TcpStream::connect_timeout(&target, PATIENCE)?))?;
        let (far, _) = listener.accept()?;
        for end in [&near, &far] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_write_timeout(Some(PATIENCE))?;
        }
        Ok(Self { ends: [near, far], round: 0 })
    }

    /// Sends other bytes than last time in both directions at once, and compares what arrives.
    pub fn exchange(&mut self) -> Result<()> {
        self.round += 1;
        let round = self.round;
        let bytes = |end: u8| -> Vec<u8> {
            (0..BYTES).map(|at| (at as u8).wrapping_mul(31) ^ (at >> 8) as u8 ^ round ^ (end << 7)).collect()
        };
        let sent = [bytes(0), bytes(1)];
        let [near, far] = &mut self.ends;
        let (mut near_out, mut far_out) = (near.try_clone()?, far.try_clone()?);
        thread::scope(|scope| {
            let writers =
                [scope.spawn(|| near_out.write_all(&sent[0])), scope.spawn(|| far_out.write_all(&sent[1]))];
            let read = |end: &mut TcpStream, expected: &[u8]| -> Result<()> {
                let mut got = vec![0; BYTES];
                end.read_exact(&mut got).with_context(|| format!("receive round {round}"))?;
                ensure!(got == expected, "round {round} arrived with other bytes");
                Ok(())
            };
            let arrived = [read(far, &sent[0]), read(near, &sent[1])];
            for writer in writers {
                writer
                    .join()
                    .expect("a writer does not panic")
                    .with_context(|| format!("send round {round}"))?;
            }
            arrived.into_iter().collect()
        })
    }
}
