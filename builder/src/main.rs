//! The program that runs in a build's pod and on a workstation.

fn main() {}
