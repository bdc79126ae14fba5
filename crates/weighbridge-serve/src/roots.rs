//! Where adapters may be loaded from.
//!
//! What lives here: [`Roots`]: whether a path that a request names leads into a directory that the operator named,
//! after every link and every `..`. What does not: refusing links inside of an adapter's directory that lead out of it,
//! which the library does; here they are found to say so.

use std::path::{Path, PathBuf};

use crate::error::StartError;

/// The directories, without links.
#[derive(Debug)]
pub(crate) struct Roots(Vec<PathBuf>);

/// Why a path is refused. One reason for all that is not inside: a request does not learn what exists elsewhere.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Outside {
    /// The operator named none.
    #[error("adapters cannot be loaded by requests: the server was started without --adapter-root")]
    NoRoots,
    /// It leads elsewhere, or nowhere.
    #[error("lora_path leads to nothing in the directories that adapters may be loaded from")]
    Elsewhere,
    /// A file of the adapter is not in its directory. Where it leads, and whether there is anything, is not told.
    #[error("a file at lora_path is a link that leads out of it")]
    Linked,
}

/// Is one of an adapter's files in this directory a link to somewhere else, or to nothing?
pub(crate) fn links_out(directory: &Path) -> bool {
    let files =
        ["adapter_config.json", "adapter_model.safetensors"].map(|file| directory.join(file));
    let links = files.iter().filter(|file| file.is_symlink());
    let mut targets = links.map(|link| link.canonicalize());
    targets.any(|target| !target.is_ok_and(|target| target.starts_with(directory)))
}

impl Roots {
    pub(crate) fn new(directories: &[PathBuf]) -> Result<Self, StartError> {
        let real = directories.iter().map(|path| {
            let real = path.canonicalize();
            real.map_err(|source| StartError::File {
                path: path.clone(),
                source,
            })
        });
        Ok(Roots(real.collect::<Result<_, _>>()?))
    }

    /// The real path of what a request named: absolute, or relative to one of the roots.
    pub(crate) fn resolve(&self, given: &str) -> Result<PathBuf, Outside> {
        if self.0.is_empty() {
            return Err(Outside::NoRoots);
        }
        // Joining an absolute path gives that path.
        let real = |root: &PathBuf| root.join(Path::new(given)).canonicalize().ok();
        let inside = |path: &PathBuf| self.0.iter().any(|root| path.starts_with(root));
        let mut found = self.0.iter().filter_map(real).filter(inside);
        found.next().ok_or(Outside::Elsewhere)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_inside_is_found_whatever_the_path_says() {
        let place = tempfile::tempdir().unwrap();
        let at = |path: &str| place.path().join(path);
        for directory in ["in/side/pirate", "out/secret", "in-other/x"] {
            std::fs::create_dir_all(at(directory)).unwrap();
        }
        std::os::unix::fs::symlink(at("out/secret"), at("in/side/link")).unwrap();
        std::os::unix::fs::symlink(at("in/side/pirate"), at("in/side/alias")).unwrap();
        std::os::unix::fs::symlink(at("in"), at("in-link")).unwrap();
        let roots = Roots::new(&[at("in-link")]).unwrap(); // itself by a link
        let pirate = at("in/side/pirate").canonicalize().unwrap();
        let full = |path: &str| at(path).to_str().unwrap().to_owned();
        for good in [
            "side/pirate",
            "side/../side/./pirate",
            "side/alias",
            &full("in/side/pirate"),
            &full("in-link/side/pirate"),
        ] {
            assert_eq!(roots.resolve(good), Ok(pirate.clone()), "{good}");
        }
        for bad in [
            "../out/secret",
            "side/link",
            "side/../../out/secret",
            "side/nothing",
            "/etc",
            "in-other/x",
            "../in-other/x", // begins like the root, and is not in it
            "a\0b",
            &full("out/secret"),
            &"x/".repeat(10_000),
        ] {
            assert_eq!(roots.resolve(bad), Err(Outside::Elsewhere), "{bad}");
        }
        // The root itself is inside, and no adapter.
        assert!(roots.resolve("").is_ok());
        assert_eq!(
            Roots::new(&[]).unwrap().resolve("side"),
            Err(Outside::NoRoots)
        );
        assert!(Roots::new(&[at("nothing")]).is_err());
    }
}
