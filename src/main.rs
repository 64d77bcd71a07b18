//! The program `compress`.
fn main() {}
