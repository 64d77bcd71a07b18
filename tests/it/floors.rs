//! The house's floors: a room uses lower ones only, and unsafe code lives in few rooms.

use std::path::Path;

use crate::support::contents;

/// Rooms from the ground up.
const FLOORS: &[(&str, u32)] = &[
    ("threads", 1),
    ("job", 1),
    ("linear_algebra", 1),
    ("simd", 1),
    ("family", 2),
    ("encoding", 2),
    ("dialect", 3),
    ("loader", 4),
    ("runtime", 5),
    ("calibration", 6),
    ("quantizer", 7),
    ("pruner", 7),
    ("fit", 8),
    ("recipe", 8),
    ("pipeline", 9),
    ("check", 10),
    ("bench", 10),
    ("report", 11),
    ("cli", 12),
    ("main", 13),
    ("lib", 13),
];

fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = contents(&root).into_iter().filter(|(name, _)| name.ends_with(".rs"));
    files.map(|(name, bytes)| (name, String::from_utf8(bytes).unwrap())).collect()
}

fn floor(room: &str) -> u32 {
    FLOORS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| panic!("room `{room}` has no floor")).1
}

#[test]
fn rooms_use_lower_floors_only() {
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let room = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        // Tests may look anywhere.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let is_test = name.contains("test");
        for (at, _) in code.match_indices("crate::").filter(|_| !is_test) {
            let rest = &code[at + "crate::".len()..];
            let used: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.split('}').next().unwrap().split(',').map(str::trim).collect(),
                None => vec![rest],
            };
            for used in used {
                let used = used.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                if !used.is_empty() && used != room && floor(used) > floor(&room) {
                    wrong.push(format!("{name} uses {used}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_code_lives_in_few_rooms_and_says_why_it_is_sound() {
    for (name, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl") {
                let rooms = ["runtime/kernels/", "simd/", "threads.rs"];
                let allowed = rooms.iter().any(|room| name.starts_with(room));
                assert!(allowed, "{name}:{}: {line}", i + 1);
            }
        }
    }
    let formats = Path::new(env!("CARGO_MANIFEST_DIR")).join("formats/src");
    for (name, bytes) in contents(&formats) {
        let text = String::from_utf8(bytes).unwrap();
        assert!(name == "map.rs" || !text.contains("unsafe {"), "{name}");
    }
}

#[test]
fn files_have_one_noun() {
    for (name, text) in sources() {
        assert!(text.lines().count() <= 900, "{name} has {} lines: it is two rooms", text.lines().count());
    }
}
