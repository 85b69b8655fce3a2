//! A program of somebody else that is attached by TCX and ends the chain: every packet goes on to the stack, and no program
//! behind it sees one. It needs no compiler, since its object is written here, byte for byte.
use aya::{
    Ebpf,
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use overlay_lab::Host;

/// Its name.
pub const NAME: &str = "ends_it";

/// Attaches it at the ingress of an interface, in front of all others or behind them, until it is dropped.
pub fn attach(host: &Host, interface: &str, first: bool) -> Ebpf {
    let interface = interface.to_owned();
    let attached = host.namespace().enter(move || {
        let mut ebpf = Ebpf::load(&object())?;
        let program: &mut SchedClassifier = ebpf.program_mut(NAME).unwrap().try_into()?;
        program.load()?;
        let order = if first { LinkOrder::first() } else { LinkOrder::last() };
        let options = TcAttachOptions::TcxOrder(order);
        program.attach_with_options(&interface, TcAttachType::Ingress, options)?;
        Ok(ebpf)
    });
    attached.unwrap()
}

/// `r0 = 0; exit`: TCX_PASS, which ends the chain.
const CODE: [u8; 16] = [0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];

/// A section of an ELF file: its header's fields, and what is in it.
#[derive(Clone, Copy)]
struct Section<'a> {
    name: u32,
    kind: u32,
    flags: u64,
    bytes: &'a [u8],
    link: u32,
    info: u32,
    /// Bytes of an entry, where it has entries.
    entry: u64,
}

/// A relocatable ELF file for BPF with one function in the section `classifier`.
fn object() -> Vec<u8> {
    const HEADER: usize = 64;
    let names = format!("\0classifier\0license\0.strtab\0.symtab\0{NAME}\0");
    let name = |wanted: &str| names.find(&format!("\0{wanted}\0")).unwrap() as u32 + 1;
    // The undefined symbol, and a global function of 16 bytes in section 1.
    let mut symbols = vec![0; 24];
    symbols.extend(name(NAME).to_le_bytes());
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend(0u64.to_le_bytes());
    symbols.extend((CODE.len() as u64).to_le_bytes());
    let plain = Section { name: 0, kind: 0, flags: 0, bytes: &[], link: 0, info: 0, entry: 0 };
    let sections = [
        plain,
        Section { name: name("classifier"), kind: 1, flags: 6, bytes: &CODE, ..plain },
        Section { name: name("license"), kind: 1, flags: 3, bytes: b"GPL\0", ..plain },
        Section { name: name(".strtab"), kind: 3, bytes: names.as_bytes(), ..plain },
        Section { name: name(".symtab"), kind: 2, bytes: &symbols, link: 3, info: 1, entry: 24, ..plain },
    ];
    let (mut contents, mut table) = (Vec::new(), Vec::new());
    for Section { name, kind, flags, bytes, link, info, entry } in sections {
        let offset = if kind == 0 { 0 } else { HEADER + contents.len() };
        table.extend([name, kind].map(u32::to_le_bytes).concat());
        table.extend([flags, 0, offset as u64, bytes.len() as u64].map(u64::to_le_bytes).concat());
        table.extend([link, info].map(u32::to_le_bytes).concat());
        table.extend([8, entry].map(u64::to_le_bytes).concat());
        contents.extend(bytes);
        contents.resize(contents.len().next_multiple_of(8), 0);
    }
    // 64 bits, little endian, version 1; relocatable, for BPF, version 1.
    let mut file = [&b"\x7fELF\x02\x01\x01"[..], &[0; 9], &[1, 0, 247, 0, 1, 0, 0, 0]].concat();
    file.extend([0, 0, (HEADER + contents.len()) as u64].map(u64::to_le_bytes).concat());
    file.extend(0u32.to_le_bytes());
    // Sizes of this header, of a program header, of a section header; the section with the sections' names.
    file.extend([HEADER as u16, 0, 0, 64, sections.len() as u16, 3].map(u16::to_le_bytes).concat());
    [file, contents, table].concat()
}
