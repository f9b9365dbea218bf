//! Turns MachineOSConfigs into builds, digests and registry cleanup.
//!
//! ```text
//! watches ─► cache ─► queues ─► os_config, os_build: observe ─► plan ─► apply ─► apiserver, registry
//!                                    │                  pure
//!                                    └ wanted, inputs, render, job, phase, usage: pure
//! ```
//!
//! | question | module |
//! | --- | --- |
//! | which objects, under which keys? | [`api`], [`decoded`] |
//! | what is built, under which name? | [`wanted`], [`inputs`], [`yaml`], [`render`] |
//! | with which objects, and how does the Job stand? | [`job`], [`etc_containers`], [`secrets`], [`phase`] |
//! | which pods does the cluster take? | [`trial`] |
//! | whose turn is it? | [`turns`] |
//! | what is to be done? | [`os_config`], [`os_build`], [`plan`] |
//! | who does it? | [`apply`], [`ledger`], [`leftovers`], [`registries`] |
//! | does anything need an image? which builds needn't stay? | [`usage`], [`retention`] |
//! | what is in the repositories, and what has lost its build? | [`inventory`], [`gc`], [`sweep`] |
//! | what is the case? | [`watches`], [`cache`], [`live`], [`context`] |
//! | how does the program run? | [`run`], [`hand_back`], [`client`], [`settings`], [`lease`], [`admin`], [`backoff`] |
//! | who is told? | [`events`], [`metrics`], [`telemetry`], [`error`] |

pub mod admin;
pub mod api;
pub mod apply;
pub mod backoff;
pub mod cache;
pub mod client;
pub mod context;
pub mod decoded;
pub mod error;
pub mod etc_containers;
pub mod events;
#[cfg(test)]
mod fixtures;
pub mod gc;
pub mod hand_back;
#[cfg(test)]
mod histories;
pub mod holdings;
pub mod image_streams;
pub mod inputs;
pub mod inventory;
pub mod job;
pub mod lease;
pub mod ledger;
pub mod leftovers;
pub mod live;
pub mod lost;
pub mod metrics;
pub mod os_build;
pub mod os_config;
pub mod phase;
pub mod plan;
pub mod pool;
pub mod registries;
pub mod render;
pub mod retention;
pub mod reuse;
pub mod run;
pub mod secrets;
pub mod settings;
pub mod sweep;
pub mod telemetry;
pub mod trial;
pub mod turns;
pub mod usage;
pub mod wanted;
pub mod watches;
pub mod yaml;
