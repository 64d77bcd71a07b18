//! Fixtures are what the manifest says they are.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::support::{contents, fixture};

#[derive(Deserialize)]
struct Manifest {
    file: Vec<File>,
}

#[derive(Deserialize)]
struct File {
    path: String,
    sha256: String,
    origin: String,
    what: String,
}

#[test]
fn every_fixture_is_in_the_manifest_with_its_digest() {
    let manifest: Manifest = toml::from_str(&std::fs::read_to_string(fixture("MANIFEST.toml")).unwrap()).unwrap();
    let mut files = contents(&fixture(""));
    files.retain(|name, _| !name.ends_with(".py") && !name.contains("__pycache__") && name != "MANIFEST.toml");
    for file in manifest.file {
        let bytes = files.remove(&file.path).unwrap_or_else(|| panic!("{} is missing", file.path));
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, file.sha256, "{}: run fixtures/manifest.py if the change was meant", file.path);
        assert!(!file.origin.is_empty() && !file.what.is_empty());
    }
    assert!(files.is_empty(), "not in the manifest: {:?}", files.keys());
}
