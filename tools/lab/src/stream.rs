//! TCP streams between containers: one compares every byte, the other measures the rate.
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    command,
    container::Container,
    namespace::{Namespace, join},
    wait::wait_until,
};

/// A finished transfer, every byte of which arrived as it was sent.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// How many bytes.
    pub bytes: u64,
    /// The time from the first byte to the last.
    pub time: Duration,
}

pub(crate) const BLOCK: usize = 64 * 1024;
/// How long a connection may take. It is generous because the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Sends `bytes` (rounded up to 64 KiB) from one container to another by TCP. The receiver makes the same pseudo-random
/// bytes itself and compares every byte.
pub fn transfer(from: &Container, to: &Container, bytes: u64) -> Result<Transfer> {
    transfer_by(from, to.address(), to.namespace(), bytes)
}

/// Does the same as [`transfer`] through `address`, which may belong to a container that forwards the connection to
/// `to`.
pub fn transfer_by(from: &Container, address: Ipv4Addr, to: &Namespace, bytes: u64) -> Result<Transfer> {
    let blocks = bytes.div_ceil(BLOCK as u64);
    let listener = to.enter(|| Ok(TcpListener::bind("0.0.0.0:0")?))?;
    let target = (address, listener.local_addr()?.port());
    let started = Instant::now();
    let sender = from.namespace().thread(move || {
        let mut stream = TcpStream::connect_timeout(&target.into(), PATIENCE)
            .with_context(|| format!("connect to {}:{}", target.0, target.1))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut block = vec![0; BLOCK];
        for number in 0..blocks {
            fill(&mut block, number);
            stream.write_all(&block).with_context(|| format!("send block {number} of {blocks}"))?;
        }
        Ok(())
    });
    let receiver = to.thread(move || {
        let mut stream = accept(&listener)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut expected, mut block) = (vec![0; BLOCK], vec![0; BLOCK]);
        for number in 0..blocks {
            stream.read_exact(&mut block).with_context(|| format!("receive block {number} of {blocks}"))?;
            fill(&mut expected, number);
            if block != expected {
                let at = block.iter().zip(&expected).position(|(got, sent)| got != sent);
                bail!("block {number} differs from what was sent, first at byte {at:?}");
            }
        }
        match stream.read(&mut block)? {
            0 => Ok(()),
            extra => bail!("{extra} bytes more than were sent"),
        }
    });
    // The sender's error is reported first: without a connection the receiver can only say that none came.
    let (sent, received) = (join(sender), join(receiver));
    sent?;
    received?;
    Ok(Transfer { bytes: blocks * BLOCK as u64, time: started.elapsed() })
}

/// Accepts one connection, or gives up after a while. A blocking accept would hang the test when the path is broken.
pub(crate) fn accept(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let mut accepted = None;
    wait_until("a connection", PATIENCE, || {
        accepted = match listener.accept() {
            Ok((stream, _)) => Some(stream),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error.into()),
        };
        Ok(accepted.is_some())
    })?;
    let stream = accepted.context("a connection")?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Fills a block with pseudo-random bytes (Marsaglia's xorshift64) that depend on its number.
pub(crate) fn fill(block: &mut [u8], number: u64) {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in block.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}

/// Runs one TCP stream of iperf3, and returns the received Mbit/s.
pub fn iperf3(from: &Container, to: &Container, seconds: u32) -> Result<f64> {
    const PORT: u16 = 5201;
    let _server = to.namespace().spawn(&format!("iperf3 -s -1 -p {PORT}"))?;
    wait_until("iperf3's server", PATIENCE, || {
        Ok(to.exec(&format!("ss -Hltn sport = {PORT}"))?.contains("LISTEN"))
    })?;
    let line = format!("iperf3 -c {} -p {PORT} -t {seconds} --connect-timeout 5000 -J", to.address());
    let words: Vec<_> = line.split_whitespace().collect();
    let report = command::output(&mut from.namespace().command(&words)?)?;
    let report: serde_json::Value = serde_json::from_str(&report).context("read iperf3's report")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.with_context(|| format!("no rate in iperf3's report: {report}"))? / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_from_each_other() {
        let (mut first, mut second) = (vec![0; 64], vec![0; 64]);
        fill(&mut first, 0);
        fill(&mut second, 1);
        assert_ne!(first, second);
        fill(&mut second, 0);
        assert_eq!(first, second);
    }
}
