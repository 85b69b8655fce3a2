//! The type of service byte of a packet that comes out of the tunnel: what the way has marked, told to the packet (RFC 6040).
use overlay_common::{Reason, checksum};

/// ECN field (RFC 3168 section 5): not capable, capable (two codepoints), congestion experienced.
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
const FIELD: u8 = 0x03;

/// The inner type of service byte to deliver (RFC 6040 figure 4), or the one combination that must be dropped: "If the inner
/// ECN field is Not-ECT [and] the outer ECN field is CE, the decapsulator MUST drop the packet" (section 4.2).
#[inline(always)]
pub(crate) fn unwrapped(outer: u8, inner: u8) -> Result<u8, Reason> {
    let field = match (outer & FIELD, inner & FIELD) {
        (CE, NOT_ECT) => return Err(Reason::NotEctMarked),
        (CE, _) => CE,
        (ECT_1, ECT_0) => ECT_1,
        (_, inner) => inner,
    };
    Ok(inner & !FIELD | field)
}

/// The checksum of an IPv4 header whose first byte is `version`, once its type of service byte is not `from` but `to`.
#[inline(always)]
pub(crate) fn checksum(sum: u16, version: u8, from: u8, to: u8) -> [u8; 2] {
    let word = |tos| u16::from_be_bytes([version, tos]);
    checksum::update(sum, word(from), word(to)).to_be_bytes()
}
