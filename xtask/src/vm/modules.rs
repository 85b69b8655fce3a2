//! Kernel modules in the order in which they can be loaded. depmod makes such a list when a kernel is installed, but
//! these kernels are not, so the order is taken from the modules, which name what they need.
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::files::name;
use overlay_project::command;

/// The modules that agent and lab need: for links, for the tunnel, for both attach methods, and for somebody else's queue.
pub(super) const WANTED: &[&str] = &["veth", "bridge", "vxlan", "sch_ingress", "cls_bpf", "sch_tbf", "tun"];

/// Copies the wanted modules of `all`, and those that they need, into `folder`, unpacked and numbered in their order.
pub(super) fn collect(all: &[PathBuf], folder: &Path, busybox: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let files = all.iter().filter_map(|path| Some((module(path)?, path))).collect();
    let mut order = Vec::new();
    for wanted in WANTED {
        place(wanted, &files, busybox, &mut order)?;
    }
    for (number, (module, bytes)) in order.iter().enumerate() {
        fs::write(folder.join(format!("{number:02}-{module}.ko")), bytes)?;
    }
    Ok(())
}

/// `ip6_udp_tunnel` for `.../ip6_udp_tunnel.ko.xz`. File names have dashes where the kernel's names have underscores.
fn module(path: &Path) -> Option<String> {
    let (module, packed) = name(path).split_once(".ko")?;
    matches!(packed, "" | ".xz").then(|| module.replace('-', "_"))
}

/// Appends `module` to `order`, behind all modules that it needs.
fn place(
    module: &str,
    files: &BTreeMap<String, &PathBuf>,
    busybox: &Path,
    order: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if order.iter().any(|(placed, _)| placed == module) {
        return Ok(());
    }
    let Some(path) = files.get(module) else { bail!("there is no module {module}") };
    let bytes = read(path, busybox).with_context(|| format!("read {}", path.display()))?;
    for needed in needs(&bytes) {
        place(&needed, files, busybox, order)?;
    }
    order.push((module.to_owned(), bytes));
    Ok(())
}

fn read(path: &Path, busybox: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|end| end == "ko") {
        return Ok(fs::read(path)?);
    }
    let mut xzcat = Command::new(busybox);
    let output = xzcat.arg("xzcat").arg(path).output()?;
    if !output.status.success() {
        bail!("{} ended with {}", command::show(&xzcat), output.status);
    }
    Ok(output.stdout)
}

/// What is behind `depends=` in the section .modinfo, whose entries end with a zero byte.
fn needs(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_what_it_needs_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let modules =
            [("a-b", "depends="), ("veth", "depends=a-b"), ("bridge", "license=GPL\0depends=veth,a_b")];
        let mut files = Vec::new();
        for (module, info) in modules {
            let path = folder.path().join(format!("{module}.ko"));
            fs::write(&path, format!("ELF\0{info}\0name={module}\0")).unwrap();
            files.push(path);
        }
        let files: BTreeMap<_, _> = files.iter().map(|path| (module(path).unwrap(), path)).collect();
        let mut order = Vec::new();
        for module in ["bridge", "veth"] {
            place(module, &files, Path::new("/nowhere"), &mut order).unwrap();
        }
        let names: Vec<_> = order.iter().map(|(module, _)| module.as_str()).collect();
        assert_eq!(names, ["a_b", "veth", "bridge"]);
        assert!(place("missing", &files, Path::new("/nowhere"), &mut order).is_err());
    }
}
