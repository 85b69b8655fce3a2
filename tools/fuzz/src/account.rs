//! The account of all frames: the programs' reasons and the kernel's own counters must agree with the rules.
use std::collections::BTreeMap;

use overlay_common::{Hook, Reason, Verdict};

use crate::{
    kernel_counters::KernelCounters,
    options::FastPath,
    rules::{End, Fate},
    twins::{Counted, Delivered},
};

/// Where the frames ended, and what does not add up.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) ended: BTreeMap<String, u64>,
    pub(crate) unaccounted: i64,
    pub(crate) why: Vec<String>,
}

type Reading = (Counted, KernelCounters);

impl Account {
    /// Compares what was counted between two readings with what the rules say about the frames that were sent in
    /// between.
    pub(crate) fn of(
        fates: &[&Fate],
        fast_path: FastPath,
        sent: &Delivered,
        before: &Reading,
        after: &Reading,
    ) -> Self {
        let mut account = Self::default();
        let counted = |hook, reason| {
            let read = |reading: &Reading| reading.0.get(&(hook, reason)).copied().unwrap_or_default() as i64;
            read(after) - read(before)
        };
        let total =
            |count: &dyn Fn(&Fate) -> usize| fates.iter().map(|fate| count(fate)).sum::<usize>() as i64;
        let marks = sent.marks as i64;
        // A connection that the stack has carried a packet of is a stack flow. The rules know only frames, not what
        // came before.
        let mut stack_flows = counted(Hook::Decap, Reason::StackFlow);
        if fast_path == FastPath::Established {
            // The stack decides on the others, too. None comes back from it, because the container answers nobody.
            stack_flows += counted(Hook::Decap, Reason::NotEstablished);
            let carried = counted(Hook::Decap, Reason::Carried);
            if carried != 0 {
                account.why.push(format!("{carried} carried of connections that the stack has not accepted"));
            }
        }
        let kernel = after.1.since(&before.1);
        let is = |name: &str| kernel.get(name);
        let ends = |end: End| total(&|fate| fate.ends.iter().filter(|is| **is == end).count());
        // For packets of such connections it is the kernel, not the program, that sees the outer checksum, and it
        // refuses a wrong one.
        let broken = total(&|fate| usize::from(fate.broken_outer_sum && fate.decap == [Reason::Carried]));
        let inner = total(&|fate| fate.again.iter().filter(|is| **is == Err(End::UdpError)).count());
        let minded = (is("Udp.InErrors") - ends(End::UdpError) - inner).clamp(0, broken.min(stack_flows));
        // Congestion marks that cannot be carried over are dropped by the kernel's tunnel.
        let congested = total(&|fate| fate.decap.iter().filter(|is| **is == Reason::NotEctMarked).count());
        let marked = (congested - counted(Hook::Decap, Reason::NotEctMarked)).clamp(0, stack_flows);
        let (mut ours, mut options, mut decapped) = (0, 0, 0);
        for (hook, reason) in
            Reason::ALL.iter().flat_map(|reason| [(Hook::Decap, *reason), (Hook::Receive, *reason)])
        {
            let mut is = counted(hook, reason);
            let mut should = total(&|fate| {
                let again = fate.again.iter().filter(|is| **is == Ok(reason) && hook == Hook::Receive);
                let reasons = if hook == Hook::Decap { &fate.decap } else { &fate.receive };
                reasons.iter().filter(|is| **is == reason).count() + again.count()
            });
            match (hook, reason) {
                (Hook::Decap, Reason::InnerOptions) => is -= marks,
                (Hook::Receive, Reason::Carried) => {
                    is -= marks;
                    should += stack_flows - minded - marked;
                }
                (Hook::Decap, Reason::Carried) => should -= stack_flows - marked,
                (Hook::Decap, Reason::NotEctMarked) => should -= marked,
                (Hook::Decap, Reason::StackFlow) => should = is,
                (Hook::Decap, Reason::NotEstablished) if fast_path == FastPath::Established => should = is,
                _ => {}
            }
            if hook == Hook::Receive {
                // Frames with outer options may add to this number.
                let open = total(&|fate| fate.open.iter().filter(|is| **is == reason).count());
                let taken = (is - should).clamp(0, open);
                should += taken;
                options += taken;
            }
            let name = format!("{} {}", hook.as_str(), reason.as_str());
            if is != should {
                account.why.push(format!("{name}: {is} counted, {should} expected"));
            }
            let ends_here = hook == Hook::Receive || reason.verdict() != Verdict::Stack;
            if ends_here && reason.verdict() != Verdict::Event {
                ours += is;
                decapped += if hook == Hook::Decap { is } else { 0 };
                account.enter(name, is);
            }
        }

        let refused = total(&|fate| fate.open.len()) - options;
        // Datagrams with outer options may or may not reach UDP and the tunnel.
        let may = refused + options + ends(End::Options);
        let joined = total(&|fate| fate.joined);
        // Inner packets for the host itself belong to frames that were counted before.
        let again = |end: End| total(&|fate| fate.again.iter().filter(|is| **is == Err(end)).count());
        let twice = total(&|fate| fate.again.iter().filter(|is| is.is_ok()).count());
        // These are what the kernel tells about the frames that none of our programs counted.
        for (name, is, should, may) in [
            (
                "frames that the devices took",
                is("eth0.rx_packets") + is("eth1.rx_packets") - marks,
                sent.sent as i64,
                0,
            ),
            (
                // The kernel takes the outer packet and, behind overlay0, the inner one. An ICMP error to a packet in the name of
                // the host itself comes through lo, unless the limit of such errors per second has been reached.
                "IPv4 packets that the kernel took",
                is("Ip.InReceives") - 2 * marks - is("lo.rx_packets"),
                sent.sent as i64 - decapped - ends(End::OtherProtocol)
                    + counted(Hook::Receive, Reason::Carried)
                    - marks,
                0,
            ),
            (
                "UDP with wrong length or checksum",
                is("Udp.InErrors"),
                ends(End::UdpError) + again(End::UdpError) + minded,
                may,
            ),
            (
                "datagrams for the tunnel's socket",
                is("Udp.InDatagrams") - marks,
                total(&|fate| fate.receive.len()) + stack_flows - minded
                    + ends(End::NoTunnel)
                    + again(End::NoTunnel)
                    + twice,
                may,
            ),
            (
                "outer fragments",
                is("Ip.ReasmReqds"),
                ends(End::Fragment) + again(End::Fragment) + joined,
                may,
            ),
            ("datagrams put together", is("Ip.ReasmOKs"), joined, 0),
        ] {
            if !(should..=should + may).contains(&is) {
                account.why.push(format!("{name}: {is} counted, {should} expected"));
            }
        }
        account.unaccounted = sent.sent as i64 + twice - ours - refused - minded - marked;
        account.enter("kernel no-tunnel, of a stack flow".to_owned(), marked);
        account.enter("kernel udp-error, of a stack flow".to_owned(), minded);
        account.enter("kernel outer-options".to_owned(), refused + ends(End::Options));
        for end in End::ALL {
            account.unaccounted -= ends(*end);
            if *end == End::Options {
                continue;
            }
            account.enter(format!("kernel {}", end.as_str()), ends(*end));
        }
        if account.unaccounted != 0 {
            account.why.push(format!("{} frames are in no counter", account.unaccounted));
        }
        if !account.why.is_empty() {
            account.why.push(format!("the kernel's counters: {:?}", kernel.all()));
        }
        account
    }

    fn enter(&mut self, name: String, count: i64) {
        if count > 0 {
            self.ended.insert(name, count.cast_unsigned());
        }
    }
}
