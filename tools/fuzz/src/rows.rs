//! Frames that once failed, as rows of a file: name, expected verdict, device, and the frames in hexadecimal.
use anyhow::{Context as _, Result, bail, ensure};

use crate::twins::Nic;

/// One case that every run repeats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What is wrong with the frames.
    pub name: String,
    /// What the rules say about them, such as `decap:malformed` or `decap:inner-options,receive:carried`.
    pub verdict: String,
    /// The device through which they come: `eth0`, which is the underlay device, or `eth1`.
    pub nic: Nic,
    /// The frames, from the outer Ethernet header on.
    pub frames: Vec<Vec<u8>>,
}

/// The rows of the project.
pub fn rows() -> Result<Vec<Row>> {
    parse(include_str!("rows.txt"))
}

/// Reads rows of the form `name | verdict | device | hex hex ...`, one on each line. `#` begins a remark.
fn parse(text: &str) -> Result<Vec<Row>> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| row(line).with_context(|| format!("in the row `{line}`"))).collect()
}

fn row(line: &str) -> Result<Row> {
    let mut fields = line.split('|').map(str::trim);
    let mut field = |what| fields.next().filter(|field| !field.is_empty()).context(what);
    let name = field("no name")?.to_owned();
    let verdict = field("no verdict")?.to_owned();
    let nic = match field("no device")? {
        "eth0" => Nic::Underlay,
        "eth1" => Nic::Second,
        other => bail!("{other} is no device"),
    };
    let frames = field("no frames")?.split(' ').map(bytes).collect::<Result<_>>()?;
    Ok(Row { name, verdict, nic, frames })
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    ensure!(hex.is_ascii() && hex.len().is_multiple_of(2), "not pairs of hexadecimal digits");
    let pair = |at| u8::from_str_radix(&hex[at..at + 2], 16).context("not hexadecimal");
    (0..hex.len()).step_by(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_and_broken_ones_are_named() {
        let parsed = parse("# remark\n\na name | decap:malformed | eth0 | 00ff 10\n").unwrap();
        let row = Row {
            name: "a name".into(),
            verdict: "decap:malformed".into(),
            nic: Nic::Underlay,
            frames: vec![vec![0, 255], vec![16]],
        };
        assert_eq!(parsed, [row]);
        for broken in
            ["a", "a | b", "a | b | eth0", "a | b | eth0 | 0", "a | b | eth0 | xx", "a | b | tun0 | 00"]
        {
            assert!(format!("{:#}", parse(broken).unwrap_err()).contains(broken));
        }
        assert!(rows().is_ok());
    }
}
