//! Frames that are sent by live test runs of an XDP program, as fast as one CPU can, and counted where they arrive.
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::{
    Ebpf, include_bytes_aligned,
    maps::{Array, MapData, PerCpuArray},
    programs::{
        LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunAttrs, TestRunOptions, Xdp,
        tc::TcAttachOptions,
    },
    sys::{Stats, enable_stats},
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, CpuSet, sched_setaffinity, setns},
    unistd::Pid,
};
use overlay_common::bench::{Arrived, First, HEAD, Shape, TRAILER, Varied};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
pub(crate) struct Specification {
    /// The interface that the frames come from, in the network namespace that this program was started in.
    from: String,
    /// Whether frames go up the stack of `from`, as if it had received them, or are sent by `from` and received by its
    /// peer's driver.
    way: Way,
    /// The first bytes of each frame: 60, 88 or 110.
    head: Vec<u8>,
    /// Bytes of each frame, without its frame check sequence.
    length: usize,
    /// How many connections take turns.
    flows: u32,
    /// Offsets of their source ports.
    ports: [u32; 2],
    first_port: u16,
    /// How many peers take turns, and the addresses that differ between them.
    #[serde(default)]
    peers: u32,
    #[serde(default)]
    varied: Vec<Variation>,
    /// The interface where the frames are counted.
    to: String,
    to_namespace: PathBuf,
    /// How many frames are sent in one go before their arrival is waited for. It is a power of two.
    window: u32,
    /// Whether the kernel counts the runs and the time of all programs meanwhile (BPF_ENABLE_STATS, Linux 5.8).
    #[serde(default)]
    statistics: bool,
    /// The CPU that sends them, and in the kernel carries them to where they are counted.
    #[serde(default)]
    cpu: usize,
    /// Whether to say `ready`, and to send only when standard input has a line or ends: for two programs that are to send at once.
    #[serde(default)]
    waits: bool,
    /// How long frames are sent. Another go is begun until this time is over.
    milliseconds: u64,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Receive,
    Send,
}

#[derive(Deserialize)]
struct Variation {
    header: u32,
    field: u32,
    base: u32,
    step: u32,
}

#[derive(Serialize)]
pub(crate) struct Report {
    sent: u64,
    arrived: u64,
    /// Whether the numbers that arrived are those that were sent, each once.
    each_once: bool,
    /// The time from the first frame of each go to the arrival of its last, added up. The milliseconds that the kernel
    /// takes to start and end a test run are left out.
    nanoseconds: u64,
    /// Length and first bytes of the first frame that arrived.
    first_length: u32,
    first: Vec<u8>,
}

/// How long frames may be under way.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many frames the kernel sends at once, as a NIC's driver hands them up in one poll.
const BATCH: u32 = 64;

pub(crate) fn send(specification: &Specification) -> Result<Report> {
    let mut ebpf = Ebpf::load(include_bytes_aligned!(concat!(env!("OUT_DIR"), "/overlay-bench")))
        .context("load the benchmark's programs")?;
    let mut shapes: Array<_, Shape> =
        Array::try_from(ebpf.map_mut("SHAPE").context("no map SHAPE")?).context("map SHAPE")?;
    shapes.set(0, shape(specification)?, 0).context("write the frames' shape")?;
    attach(&mut ebpf, &specification.to_namespace, &specification.to)?;
    let sender: &mut Xdp = ebpf.program_mut("send").context("no program send")?.try_into()?;
    sender.load().context("load the program that sends")?;

    let ebpf = &ebpf;
    let arrived: PerCpuArray<_, Arrived> =
        PerCpuArray::try_from(ebpf.map("ARRIVED").context("no map ARRIVED")?).context("map ARRIVED")?;
    let sender: &Xdp = ebpf.program("send").context("no program send")?.try_into()?;
    let context = context(&specification.from, specification.length)?;
    let mut frame = vec![0; specification.length];
    frame[..specification.head.len()].copy_from_slice(&specification.head);
    let mut cpus = CpuSet::new();
    cpus.set(specification.cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
        .with_context(|| format!("pin to CPU {}", specification.cpu))?;

    // The kernel ends this with the process, however that ends.
    let _statistics = specification
        .statistics
        .then(|| enable_stats(Stats::RunTime))
        .transpose()
        .context("have the kernel count programs' time")?;
    if specification.waits {
        println!("ready");
        io::stdin().read_line(&mut String::new()).context("wait for the word to begin")?;
    }
    let (mut sent, started) = (0, Instant::now());
    let counted = loop {
        sender
            .test_run(TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&context),
                repeat: specification.window,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(specification.window)),
                ..TestRunOptions::default()
            })
            .with_context(|| format!("send frames from {}", specification.from))?;
        sent += u64::from(specification.window);
        let counted = wait(&arrived, sent)?;
        if counted.frames != sent || started.elapsed() >= Duration::from_millis(specification.milliseconds) {
            break counted;
        }
    };
    let first: Array<_, First> =
        Array::try_from(ebpf.map("FIRST").context("no map FIRST")?).context("map FIRST")?;
    let first = first.get(&0, 0)?;
    Ok(Report {
        sent,
        arrived: counted.frames,
        each_once: each_once(sent, &counted),
        nanoseconds: counted.nanoseconds,
        first_length: first.length,
        first: first.bytes.to_vec(),
    })
}

/// Whether the numbers 0 to `sent` - 1 have arrived, by their count and their sum. If one frame is lost and another
/// comes twice, the count is right but not the sum.
fn each_once(sent: u64, arrived: &Arrived) -> bool {
    // The sum wraps as the sum of what arrived does.
    let numbers = (u128::from(sent) * u128::from(sent.saturating_sub(1)) / 2) as u64;
    arrived.frames == sent && arrived.numbers == numbers
}

/// Waits until all frames have arrived or patience ends, and returns what has arrived.
fn wait(arrived: &PerCpuArray<&MapData, Arrived>, sent: u64) -> Result<Arrived> {
    let started = Instant::now();
    loop {
        let sum = |sum: Arrived, cpu: &Arrived| Arrived {
            frames: sum.frames + cpu.frames,
            numbers: sum.numbers.wrapping_add(cpu.numbers),
            nanoseconds: sum.nanoseconds + cpu.nanoseconds,
        };
        let counted = arrived.get(&0, 0).context("read what arrived")?.iter().fold(Arrived::default(), sum);
        if counted.frames >= sent || started.elapsed() > PATIENCE {
            return Ok(counted);
        }
        thread::yield_now();
    }
}

fn shape(specification: &Specification) -> Result<Shape> {
    let Specification { head, length, ports, .. } = specification;
    ensure!([60, 88, 110].contains(&head.len()), "a header of {} bytes", head.len());
    ensure!(specification.window.is_power_of_two(), "{} frames in one go", specification.window);
    ensure!(*length >= head.len() && *length < 2048 - TRAILER, "frames of {length} bytes");
    let mut template = [0; HEAD];
    template[..head.len()].copy_from_slice(head);
    let mut varied = [Varied::default(); 2];
    ensure!(specification.varied.len() <= varied.len(), "more than {} addresses that vary", varied.len());
    for (into, &Variation { header, field, base, step }) in varied.iter_mut().zip(&specification.varied) {
        let sum = header_sum(head, header, field).with_context(|| format!("no IPv4 header at {header}"))?;
        *into = Varied { header, field, base, step, sum };
    }
    Ok(Shape {
        template,
        head: head.len().try_into()?,
        trailer: (length - TRAILER).try_into()?,
        // linux/bpf.h: XDP_PASS, XDP_TX.
        verdict: match specification.way {
            Way::Receive => 2,
            Way::Send => 3,
        },
        flows: specification.flows,
        ports: *ports,
        first_port: specification.first_port.into(),
        peers: specification.peers,
        window_mask: u64::from(specification.window) - 1,
        varied,
    })
}

/// Sum of an IPv4 header's words without its checksum and the address at `field`.
fn header_sum(head: &[u8], header: u32, field: u32) -> Option<u32> {
    let (at, field) = (usize::try_from(header).ok()?, usize::try_from(field).ok()?);
    let words = head.get(at..at + 20)?.chunks_exact(2).enumerate();
    let others = words.filter(|(index, _)| ![10, field, field + 2].contains(&(index * 2)));
    Some(others.map(|(_, word)| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum())
}

/// The fields of `struct xdp_md` (linux/bpf.h) that a test run takes.
fn context(from: &str, length: usize) -> Result<[u8; 24]> {
    let index = if_nametoindex(from).with_context(|| format!("no interface {from}"))?;
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(length)?.to_ne_bytes());
    context[12..16].copy_from_slice(&index.to_ne_bytes());
    Ok(context)
}

/// Attaches the program that counts. It stays attached as long as `ebpf` lives.
fn attach(ebpf: &mut Ebpf, namespace: &Path, interface: &str) -> Result<()> {
    let program: &mut SchedClassifier =
        ebpf.program_mut("finish").context("no program finish")?.try_into()?;
    program.load().context("load the program that counts")?;
    let attached = thread::scope(|scope| {
        let attaching = scope.spawn(|| {
            let file = File::open(namespace).with_context(|| format!("open {}", namespace.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("enter {}", namespace.display()))?;
            let order = TcAttachOptions::TcxOrder(LinkOrder::first());
            program
                .attach_with_options(interface, TcAttachType::Ingress, order)
                .with_context(|| format!("attach to {interface} (takes TCX: Linux 6.6)"))
        });
        attaching.join().map_err(|_| anyhow!("the thread that attaches panicked"))?
    });
    attached.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks four frames that were sent, of which these numbers arrived.
    fn of_four(numbers: &[u64]) -> bool {
        let arrived =
            Arrived { frames: numbers.len() as u64, numbers: numbers.iter().sum(), ..Arrived::default() };
        each_once(4, &arrived)
    }

    #[test]
    fn each_number_once_in_any_order_is_well() {
        assert!(of_four(&[0, 1, 2, 3]));
        assert!(of_four(&[3, 0, 2, 1]));
        assert!(each_once(0, &Arrived::default()));
    }

    #[test]
    fn a_lost_frame_is_noticed() {
        assert!(!of_four(&[0, 1, 2]));
        // The frame of number 0 adds nothing to the sum.
        assert!(!of_four(&[1, 2, 3]));
    }

    #[test]
    fn a_frame_that_came_twice_is_noticed() {
        assert!(!of_four(&[0, 1, 2, 2, 3]));
        assert!(!of_four(&[0, 0, 1, 2, 3]));
    }

    #[test]
    fn a_lost_frame_is_not_made_good_by_another_s_duplicate() {
        assert!(!of_four(&[0, 1, 2, 2]));
        assert!(!of_four(&[1, 1, 2, 3]));
    }

    #[test]
    fn the_sum_may_wrap() {
        // 2^33 * (2^33 - 1) / 2 = 2^65 - 2^32.
        let (sent, numbers) = (1 << 33, 0_u64.wrapping_sub(1 << 32));
        assert!(each_once(sent, &Arrived { frames: sent, numbers, nanoseconds: 1 }));
    }
}
