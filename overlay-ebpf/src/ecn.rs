//! Congestion marks across the tunnel (RFC 6040): a mark that the outer header got on its path is passed on to the inner
//! packet.
use overlay_common::Reason;

/// ECN field (RFC 3168 section 5): not capable, capable (two codepoints), congestion experienced.
const NOT_ECT: u8 = 0;
const ECT_1: u8 = 1;
const ECT_0: u8 = 2;
const CE: u8 = 3;
const FIELD: u8 = 0x03;

/// The inner type of service byte to deliver (RFC 6040 figure 4), or the one combination that must be dropped: "If the inner
/// ECN field is Not-ECT [and] the outer ECN field is CE, the decapsulator MUST drop the packet" (section 4.2).
#[inline(always)]
pub(crate) fn decapsulated(outer: u8, inner: u8) -> Result<u8, Reason> {
    let field = match (outer & FIELD, inner & FIELD) {
        (CE, NOT_ECT) => return Err(Reason::NotEctMarked),
        (CE, _) => CE,
        (ECT_1, ECT_0) => ECT_1,
        (_, inner) => inner,
    };
    Ok(inner & !FIELD | field)
}
