//! Filters of a clsact qdisc, for kernels without TCX. They have no link that could be pinned, so the kernel is asked for them.
//!
//! A filter lives until somebody removes it, its qdisc or its interface. It goes also when its interface is moved to another
//! namespace, and when its namespace ends. An interface that gets the index afterwards has no filter of ours.
use std::{
    collections::BTreeSet,
    fs, io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf,
    programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions},
};
use log::info;
use nix::errno::Errno;

use super::{
    attacher::{Attacher, Interface, interface_name},
    attachment::{Attachment, attach_type, program},
};
use crate::{
    datapath::{
        error::{DatapathError, errno},
        fnv,
    },
    host::netlink::{
        NetlinkError,
        tc::{self, Direction, Filter, FilterQdisc},
    },
};

/// The priority of all our filters. It is a low number, so that ours see a packet before others' do, as with TCX: tc(8) counts
/// down from 49152 for filters that name none. It is not 1, which others take.
const PRIORITY: u16 = 7;
/// `ETH_P_ALL`: the programs look at the Ethernet header themselves.
const ALL_PROTOCOLS: u16 = 3;

/// The filters of one network.
///
/// The handle says whose a filter is: the upper bits are a hash of where the network is pinned, the lowest eight its
/// attachment's number. So several networks, or hosts that share a namespace, have places of their own at one device, and
/// an agent finds the filters of an earlier one, whatever its version, if it has the same bpf root. (Positive as an `int`,
/// the range from which cls_bpf deals out handles itself.)
#[derive(Clone, Debug)]
pub(super) struct Clsact {
    base: u32,
    /// The interfaces whose qdisc is known to be of this agent's or an earlier one's making. Clones share them.
    made: Arc<Mutex<BTreeSet<u32>>>,
    /// Has an empty folder for each interface whose qdisc we made. It is on bpffs, so that it ends with the boot, as qdiscs do.
    marks: PathBuf,
}

impl Clsact {
    /// The filters of the network with these pins (`<bpf root>/overlay/v<ABI>/<network>`). Nothing is made.
    pub(super) fn new(pins: &Path) -> Self {
        // The handle depends neither on the version of the map layout nor on how the root was written.
        let root = pins.ancestors().nth(3).unwrap_or(pins);
        let root = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
        let place = root.join(pins.file_name().unwrap_or_default());
        let base = fnv::hash(place.as_os_str().as_encoded_bytes()) & 0x7fff_ff00;
        Self { base, made: Arc::default(), marks: pins.join("qdiscs") }
    }

    pub(super) fn marks(&self) -> &Path {
        &self.marks
    }

    fn handle(&self, attachment: Attachment) -> u32 {
        self.base | number(attachment)
    }

    fn options(&self, attachment: Attachment) -> NlOptions {
        NlOptions { priority: PRIORITY, handle: self.handle(attachment).into(), classid: None }
    }

    fn is_ours(&self, filter: &Filter, attachment: Attachment) -> bool {
        has_our_form(filter) && filter.handle == self.handle(attachment) && attachment.goes_by(&filter.name)
    }

    /// Our filter there. If somebody else's is in its place, the error names that.
    fn at(&self, attachment: Attachment, ifindex: u32) -> Result<Option<Filter>, DatapathError> {
        let direction = attachment.direction();
        if direction == Direction::Egress && qdisc(ifindex)? != Some(FilterQdisc::Clsact) {
            return Ok(None);
        }
        let filters = tc::filters(ifindex, direction).map_err(failed)?;
        let mut first = filters.into_iter().filter(|filter| filter.chain == 0 && filter.priority == PRIORITY);
        // All filters of one priority are of one kind and one protocol.
        let in_the_way = |filter: &Filter| !has_our_form(filter) || filter.handle == self.handle(attachment);
        match first.find(in_the_way) {
            Some(filter) if self.is_ours(&filter, attachment) => Ok(Some(filter)),
            Some(filter) => Err(self.taken(&filter, attachment, ifindex)),
            None => Ok(None),
        }
    }

    fn taken(&self, filter: &Filter, attachment: Attachment, ifindex: u32) -> DatapathError {
        let direction = attachment.direction();
        let direction = match direction {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        };
        let name = interface_name(ifindex).ok().flatten().unwrap_or_else(|| format!("interface {ifindex}"));
        let label = if filter.name.is_empty() { String::new() } else { format!(" `{}`", filter.name) };
        DatapathError::missing(
            format!("attach {} to {name}", attachment.program()),
            &format!(
                "its place (clsact {direction}, priority {PRIORITY}, handle {:#x}) is taken by a {} filter{label} (handle \
                 {:#x}) that is not ours: remove it with `tc filter delete dev {name} {direction} pref {PRIORITY}`, or give \
                 it another priority",
                self.handle(attachment),
                filter.kind,
                filter.handle,
            ),
        )
    }

    fn mark(&self, ifindex: u32) -> PathBuf {
        self.marks.join(ifindex.to_string())
    }

    fn unmark(&self, ifindex: u32) -> Result<(), DatapathError> {
        let mark = self.mark(ifindex);
        self.made().remove(&ifindex);
        match fs::remove_dir(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::failed(format!("remove {}", mark.display()), &error))
            }
            _ => Ok(()),
        }
    }

    fn put_mark(&self, ifindex: u32) -> Result<(), DatapathError> {
        let mark = self.mark(ifindex);
        fs::create_dir_all(&mark)
            .map_err(|error| DatapathError::failed(format!("make {}", mark.display()), &error))
    }

    fn made(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that there is a qdisc to attach to.
    fn ensure_qdisc(&self, attachment: Attachment, interface: Interface<'_>) -> Result<(), DatapathError> {
        let (action, name) =
            (format!("attach {} to {}", attachment.program(), interface.name), interface.name);
        match qdisc(interface.index)? {
            Some(FilterQdisc::Ingress) if attachment.direction() == Direction::Egress => {
                Err(DatapathError::missing(
                    action,
                    &format!(
                        "{name} has an ingress qdisc, which takes the place of clsact: move its filters to a clsact qdisc \
                         (`tc qdisc delete dev {name} ingress`, `tc qdisc add dev {name} clsact`)"
                    ),
                ))
            }
            Some(_) => Ok(()),
            None => match tc::add_clsact(interface.index) {
                Ok(()) => {
                    self.made().insert(interface.index);
                    self.put_mark(interface.index)
                }
                // Somebody else was faster, and then the qdisc is not ours.
                Err(error) if error.errno == Errno::EEXIST => Ok(()),
                Err(error) if error.errno == Errno::ENODEV => Err(DatapathError::Gone(interface.index)),
                Err(error) => Err(DatapathError::failed(action, &error)),
            },
        }
    }

    /// Removes the qdiscs that we made and that have no filters. This is done only when the network goes: whenever an interface
    /// gets or loses such a qdisc, the kernel drops what is being sent there for a fraction of a millisecond (`qdisc_graft`
    /// deactivates the device), and an empty qdisc costs nothing.
    pub(super) fn remove_qdiscs(&self) -> Result<(), DatapathError> {
        self.forget_gone()?;
        for ifindex in self.marked()? {
            let mut empty = qdisc(ifindex)? == Some(FilterQdisc::Clsact);
            for direction in [Direction::Ingress, Direction::Egress] {
                empty &= tc::filters(ifindex, direction).map_err(failed)?.is_empty();
            }
            if empty {
                tc::remove_clsact(ifindex).map_err(failed)?;
            }
            self.unmark(ifindex)?;
        }
        Ok(())
    }

    /// Forgets the qdiscs that are gone. A later qdisc of an interface with the same index is not ours.
    pub(super) fn forget_gone(&self) -> Result<(), DatapathError> {
        let qdiscs = tc::filter_qdiscs().map_err(failed)?;
        let marked = self.marked()?;
        self.made().extend(marked.iter().copied());
        for ifindex in marked.into_iter().filter(|ifindex| !qdiscs.contains_key(ifindex)) {
            self.unmark(ifindex)?;
        }
        Ok(())
    }

    fn marked(&self) -> Result<Vec<u32>, DatapathError> {
        let files = match fs::read_dir(&self.marks) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.map_err(|error| DatapathError::failed("read the folder of our qdiscs", &error))?,
        };
        let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }
}

impl Attacher for Clsact {
    fn found(&self) -> Result<Vec<(Attachment, u32)>, DatapathError> {
        let mut found = BTreeSet::new();
        for (ifindex, qdisc) in tc::filter_qdiscs().map_err(failed)? {
            for direction in [Direction::Ingress, Direction::Egress] {
                if direction == Direction::Egress && qdisc == FilterQdisc::Ingress {
                    continue;
                }
                let filters = tc::filters(ifindex, direction).map_err(failed)?;
                let at = Attachment::ALL.into_iter().filter(|one| one.direction() == direction);
                let ours = at.filter(|one| filters.iter().any(|filter| self.is_ours(filter, *one)));
                found.extend(ours.map(|attachment| (attachment, ifindex)));
            }
        }
        Ok(found.into_iter().collect())
    }

    fn replace(&self, ebpf: &mut Ebpf, attachment: Attachment, ifindex: u32) -> Result<bool, DatapathError> {
        if self.at(attachment, ifindex)?.is_none() {
            return Ok(false);
        }
        let Some(name) = interface_name(ifindex)? else { return Ok(false) };
        let action = format!("replace {} at {name}", attachment.program());
        let NlOptions { priority, handle, classid } = self.options(attachment);
        let link = SchedClassifierLink::attached(
            &name,
            attach_type(attachment.direction()),
            priority,
            handle,
            classid,
        );
        let link = link.map_err(|error| DatapathError::failed(&action, &error))?;
        let program = program(ebpf, attachment)?;
        // The request has no NLM_F_CREATE, so cls_bpf exchanges the program in its list, and a packet sees the old one or the
        // new one.
        match program.attach_to_link(link).and_then(|id| program.take_link(id)) {
            // Dropping it would detach.
            Ok(link) => {
                mem::forget(link);
                Ok(true)
            }
            // The filter went meanwhile, alone (ENOENT), with its qdisc or with its interface.
            Err(error) if matches!(errno(&error), Some(Errno::ENOENT | Errno::ENODEV)) => {
                info!("{} of {name} went while it was to be replaced", attachment.program());
                Ok(false)
            }
            Err(error) => Err(DatapathError::failed(&action, &error)),
        }
    }

    fn attach(
        &self,
        ebpf: &mut Ebpf,
        attachment: Attachment,
        interface: Interface<'_>,
    ) -> Result<(), DatapathError> {
        self.ensure_qdisc(attachment, interface)?;
        let options = TcAttachOptions::Netlink(self.options(attachment));
        let program = program(ebpf, attachment)?;
        let link = program
            .attach_with_options(interface.name, attach_type(attachment.direction()), options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| match errno(&error) {
                Some(Errno::ENODEV) => DatapathError::Gone(interface.index),
                _ => DatapathError::failed(
                    format!("attach {} to {}", attachment.program(), interface.name),
                    &error,
                ),
            })?;
        // Dropping it would detach.
        mem::forget(link);
        Ok(())
    }

    fn detach(&self, attachment: Attachment, ifindex: u32) -> Result<(), DatapathError> {
        let direction = attachment.direction();
        let filters = tc::filters(ifindex, direction).map_err(failed)?;
        if let Some(filter) = filters.iter().find(|filter| self.is_ours(filter, attachment)) {
            tc::remove_filter(ifindex, direction, PRIORITY, filter.handle).map_err(failed)?;
        }
        if qdisc(ifindex)?.is_none() {
            // The interface is gone, most likely.
            self.unmark(ifindex)?;
        }
        Ok(())
    }

    fn restore(&self) -> Result<usize, DatapathError> {
        let missing: Vec<u32> =
            self.made().iter().copied().filter(|ifindex| !self.mark(*ifindex).exists()).collect();
        missing.iter().try_for_each(|ifindex| self.put_mark(*ifindex))?;
        Ok(missing.len())
    }

    fn runs(&self, id: u32, attachment: Attachment, interface: Interface<'_>) -> Result<bool, DatapathError> {
        let direction = attachment.direction();
        let filters = tc::filters(interface.index, direction).map_err(failed)?;
        Ok(filters.iter().any(|filter| self.is_ours(filter, attachment) && filter.program == Some(id)))
    }
}

/// Numbers are never reused: filters outlive agents.
const fn number(attachment: Attachment) -> u32 {
    match attachment {
        Attachment::Encap => 1,
        Attachment::Track => 2,
        Attachment::Bridge => 3,
        Attachment::Decap => 4,
        Attachment::Send => 5,
        Attachment::Receive => 6,
    }
}

/// Whether a filter may stand beside ours at one priority.
fn has_our_form(filter: &Filter) -> bool {
    filter.kind == "bpf"
        && filter.protocol == ALL_PROTOCOLS
        && filter.priority == PRIORITY
        && filter.chain == 0
}

/// The qdisc for filters that an interface has.
pub(super) fn qdisc(ifindex: u32) -> Result<Option<FilterQdisc>, DatapathError> {
    Ok(tc::filter_qdiscs().map_err(failed)?.get(&ifindex).copied())
}

fn failed(error: NetlinkError) -> DatapathError {
    DatapathError::Failed { action: error.action, detail: error.detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(pins: &str) -> u32 {
        Clsact::new(Path::new(pins)).handle(Attachment::Decap)
    }

    #[test]
    fn a_handle_says_whose_a_filter_is() {
        let ours = handle("/sys/fs/bpf/overlay/v1/default");
        // Another version of the agent, and another spelling, find what this one attached.
        assert_eq!(ours, handle("/sys/fs/bpf/overlay/v2/default"));
        assert_eq!(ours, handle("/sys/fs/../fs/bpf/overlay/v1/default"));
        assert_ne!(ours, handle("/sys/fs/bpf/overlay/v1/other"));
        assert_ne!(ours, handle("/sys/fs/bpf/lab/overlay/v1/default"));
        assert_eq!((ours & 0xff, ours >> 31), (number(Attachment::Decap), 0));
    }

    #[test]
    fn every_attachment_has_a_place_of_its_own() {
        let clsact = Clsact::new(Path::new("/nowhere/overlay/v1/default"));
        let handles: BTreeSet<u32> = Attachment::ALL.into_iter().map(|one| clsact.handle(one)).collect();
        assert_eq!(handles.len(), Attachment::ALL.len());
        assert!(handles.iter().all(|handle| *handle != 0));
    }

    #[test]
    fn only_the_name_the_kind_and_the_place_together_make_a_filter_ours() {
        let clsact = Clsact::new(Path::new("/nowhere/overlay/v1/default"));
        let ours = Filter {
            priority: PRIORITY,
            handle: clsact.handle(Attachment::Decap),
            protocol: ALL_PROTOCOLS,
            kind: "bpf".into(),
            name: "overlay_decap".into(),
            ..Filter::default()
        };
        assert!(clsact.is_ours(&ours, Attachment::Decap));
        assert!(!clsact.is_ours(&ours, Attachment::Encap));
        // Layout 1 had another name for one of the programs.
        let track = Filter { handle: clsact.handle(Attachment::Track), ..ours.clone() };
        for (name, is_ours) in [("overlay_track", true), ("overlay_note", true), ("overlay_decap", false)] {
            assert_eq!(
                clsact.is_ours(&Filter { name: name.into(), ..track.clone() }, Attachment::Track),
                is_ours
            );
        }
        assert!(!clsact.is_ours(&Filter { name: "overlay_note".into(), ..ours.clone() }, Attachment::Decap));
        for foreign in [
            Filter { priority: 8, ..ours.clone() },
            Filter { handle: ours.handle + 256, ..ours.clone() },
            Filter { protocol: 0x0800, ..ours.clone() },
            Filter { kind: "u32".into(), ..ours.clone() },
            Filter { name: "cil_from_netdev".into(), ..ours.clone() },
            Filter { chain: 1, ..ours.clone() },
        ] {
            assert!(!clsact.is_ours(&foreign, Attachment::Decap), "{foreign:?}");
        }
    }
}
