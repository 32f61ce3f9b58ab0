//! Which machine profile is used, and where measured ones are kept.
//!
//! A profile that is named wins; then the one that `sstep calibrate` has kept for the
//! device in the user's cache; then one that is built in. Whoever plans says which it was.

use std::path::{Path, PathBuf};

use sstep_executor::DeviceInfo;
use sstep_planner::Machine;

use crate::Error;

/// A machine profile and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The rates.
    pub machine: Machine,
    /// Where they come from.
    pub origin: ProfileOrigin,
}

/// Where a machine profile comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProfileOrigin {
    /// A file that was named.
    File(PathBuf),
    /// One that is built in, and was named.
    Named(String),
    /// The user's cache: measured on this machine earlier.
    Cache(PathBuf),
    /// None was measured, of the CPU or the device of this name.
    BuiltIn(Option<String>),
}

impl Profile {
    /// The profile that is named, a file's or a built-in one's ([`Machine::built_in`]);
    /// or else the one kept for the device, of the CPU without one; or else a built-in one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if a file cannot be read or is no profile of
    /// this version.
    pub fn find(named: Option<&str>, device: Option<&DeviceInfo>) -> Result<Profile, Error> {
        if let Some(name) = named {
            if let Some(machine) = Machine::built_in(name) {
                let origin = ProfileOrigin::Named(name.to_owned());
                return Ok(Profile { machine, origin });
            }
            let path = PathBuf::from(name);
            return Profile::read(&path, ProfileOrigin::File(path.clone()));
        }
        match profile_path(device) {
            Some(path) if path.is_file() => {
                Profile::read(&path, ProfileOrigin::Cache(path.clone()))
            }
            _ => Ok(Profile {
                machine: match device {
                    Some(_) => Machine::gpu_default(),
                    None => Machine::cpu_default(),
                },
                origin: ProfileOrigin::BuiltIn(device.map(|d| d.name.clone())),
            }),
        }
    }

    fn read(path: &Path, origin: ProfileOrigin) -> Result<Profile, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "reading", &e))?;
        let machine = Machine::from_json(&text).map_err(|e| Error::file(path, e))?;
        Ok(Profile { machine, origin })
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.machine.name;
        match &self.origin {
            ProfileOrigin::File(path) => write!(f, "{name} ({})", path.display()),
            ProfileOrigin::Named(_) => f.write_str(name),
            ProfileOrigin::Cache(path) => write!(f, "{name} (measured: {})", path.display()),
            ProfileOrigin::BuiltIn(None) => write!(
                f,
                "built-in profile of another machine; `sstep calibrate` measures this one"
            ),
            ProfileOrigin::BuiltIn(Some(device)) => write!(
                f,
                "built-in profile of {name}; `sstep calibrate --device` measures {device}"
            ),
        }
    }
}

/// Where `sstep calibrate` keeps the profile of a device, or of the CPU: below
/// `XDG_CACHE_HOME`, or else `.cache` in the user's home. `None` if there is neither.
pub fn profile_path(device: Option<&DeviceInfo>) -> Option<PathBuf> {
    let dir = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        // The specification has relative paths ignored.
        path.is_absolute().then_some(path)
    };
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")))?;
    Some(cache.join("sstep").join(file_name(device)))
}

/// Devices of one name are alike and share a profile.
fn file_name(device: Option<&DeviceInfo>) -> String {
    let Some(device) = device else {
        return "machine.json".to_owned();
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = device.name.to_lowercase().chars().map(plain).collect();
    format!("machine-{name}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceInfo {
        DeviceInfo {
            ordinal: 0,
            name: name.to_owned(),
            capability: (9, 0),
            total_bytes: 1 << 37,
            free_bytes: 1 << 36,
            libraries_bytes: 0,
            missing: Vec::new(),
        }
    }

    #[test]
    fn every_kind_of_device_has_a_profile_of_its_own() {
        let h200 = device("NVIDIA H200");
        assert_eq!(file_name(None), "machine.json");
        assert_eq!(file_name(Some(&h200)), "machine-nvidia-h200.json");
        // Of a device that nobody can have measured, and of the CPU by name.
        let strange = device("Nobody's GPU/7");
        assert_eq!(file_name(Some(&strange)), "machine-nobody-s-gpu-7.json");
        let found = Profile::find(None, Some(&strange)).expect("a built-in one");
        assert_eq!(found.machine, Machine::gpu_default());
        let said = found.to_string();
        assert!(
            said.contains("not measured") && said.contains("Nobody's GPU/7"),
            "{said}"
        );
        let named = Profile::find(Some("cpu"), Some(&strange)).expect("a built-in one");
        assert_eq!(named.machine, Machine::cpu_default());
    }
}
