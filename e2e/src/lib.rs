//! Scenarios: the shipped programs on a real cluster, driven and looked at as a user would.
//!
//! Nothing here imitates Kubernetes or a registry: [`World`] connects to the cluster in `KUBECONFIG`, makes the objects an administrator
//! makes (a pool with its rendered MachineConfig, secrets, a MachineOSConfig) and waits for what Strata does about them. Waiting is always
//! for a condition with a generous deadline, never for a time; no scenario asserts a speed.
//!
//! Each scenario has pools of its own, named after it, so that scenarios can run side by side. What a scenario made goes when it ends well and stays
//! for inspection when it fails; the next run of the scenario starts by removing it.

pub mod fixtures;
pub mod node;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod wait;
pub mod world;

pub use world::World;
