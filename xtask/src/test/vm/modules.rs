//! Kernel modules and the order in which they load.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The entry of a module's `.modinfo` that names the modules it needs.
const DEPENDS: &[u8] = b"\0depends=";
/// The end of a module's file name.
const SUFFIX: &str = ".ko";

/// The files of the modules named and of those that they need, each behind what it needs.
///
/// # Errors
/// A module is not there.
pub(super) fn in_order(directory: &Path, names: &[&str]) -> Result<Vec<PathBuf>> {
    let mut files = BTreeMap::new();
    find(directory, &mut files)?;
    let mut ordered = Vec::new();
    for name in names {
        add(&files, name, &mut ordered)?;
    }
    Ok(ordered)
}

/// Notes every module below a directory by its name; the kernel takes a dash for an underscore.
fn find(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            find(&path, files)?;
        } else if let Some(name) = path
            .file_name()
            .and_then(|name| name.to_str()?.strip_suffix(SUFFIX))
        {
            files.insert(name.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(files: &BTreeMap<String, PathBuf>, name: &str, ordered: &mut Vec<PathBuf>) -> Result<()> {
    let Some(file) = files.get(&name.replace('-', "_")) else {
        bail!("the kernel's package has no module {name}{SUFFIX}");
    };
    if ordered.contains(file) {
        return Ok(());
    }
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for needed in needs(&bytes) {
        add(files, &needed, ordered)?;
    }
    ordered.push(file.clone());
    Ok(())
}

/// The modules that a module says it needs.
fn needs(module: &[u8]) -> Vec<String> {
    let Some(at) = module
        .windows(DEPENDS.len())
        .position(|window| window == DEPENDS)
    else {
        return Vec::new();
    };
    let list = &module[at + DEPENDS.len()..];
    let end = list
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(list.len());
    String::from_utf8_lossy(&list[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{in_order, needs};

    #[test]
    fn what_a_module_needs_is_read_from_its_description() {
        assert_eq!(
            needs(b"\x7fELF..license=GPL\0depends=llc,stp\0retpoline=Y\0"),
            ["llc", "stp"]
        );
        assert!(needs(b"license=GPL\0depends=\0").is_empty());
        assert!(needs(b"\x7fELF").is_empty());
    }

    #[test]
    fn modules_load_behind_what_they_need_and_once() {
        let directory = std::env::temp_dir().join(format!("sluice-modules-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("net")).unwrap();
        for (name, needs) in [
            ("bridge", "stp,llc"),
            ("stp", "llc"),
            ("llc", ""),
            ("a-b", "llc"),
        ] {
            let text = format!("ELF\0depends={needs}\0");
            std::fs::write(directory.join(format!("net/{name}.ko")), text).unwrap();
        }
        let order = in_order(&directory, &["bridge", "a_b"]);
        let missing = in_order(&directory, &["veth"]);
        std::fs::remove_dir_all(&directory).unwrap();
        let names: Vec<_> = order
            .unwrap()
            .iter()
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["llc", "stp", "bridge", "a-b"]);
        assert!(missing.unwrap_err().to_string().contains("veth"));
    }
}
