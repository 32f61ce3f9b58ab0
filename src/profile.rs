//! Which machine profile is used, and where measured ones are kept.
//!
//! A profile that is named wins; then the one that `sstep calibrate` has kept in the
//! user's cache; then the one that is built in. Whoever plans says which it was.

use std::path::{Path, PathBuf};

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
    /// The user's cache: measured on this machine earlier.
    Cache(PathBuf),
    /// None was measured.
    BuiltIn,
}

impl Profile {
    /// The profile of `file`, or else the kept one, or else the built-in one.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if a file cannot be read or is no profile of
    /// this version.
    pub fn find(file: Option<&Path>) -> Result<Profile, Error> {
        if let Some(path) = file {
            return Profile::read(path, ProfileOrigin::File(path.to_path_buf()));
        }
        match profile_path() {
            Some(path) if path.is_file() => {
                Profile::read(&path, ProfileOrigin::Cache(path.clone()))
            }
            _ => Ok(Profile {
                machine: Machine::default(),
                origin: ProfileOrigin::BuiltIn,
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
            ProfileOrigin::Cache(path) => write!(f, "{name} (measured: {})", path.display()),
            ProfileOrigin::BuiltIn => write!(
                f,
                "built-in profile of another machine; `sstep calibrate` measures this one"
            ),
        }
    }
}

/// Where `sstep calibrate` keeps its profile: below `XDG_CACHE_HOME`, or else
/// `.cache` in the user's home. `None` if there is neither.
pub fn profile_path() -> Option<PathBuf> {
    let dir = |name: &str| {
        let path = PathBuf::from(std::env::var_os(name)?);
        // The specification has relative paths ignored.
        path.is_absolute().then_some(path)
    };
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")))?;
    Some(cache.join("sstep").join("machine.json"))
}
