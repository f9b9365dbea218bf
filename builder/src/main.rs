//! Builds a bootable-container image from a Containerfile and pushes it.
fn main() {}
