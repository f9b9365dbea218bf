//! Builds a bootable-container image from a Containerfile and pushes it by digest.
//!
//! ```text
//! Containerfile ─► containerfile::parse ─► containerfile::graph ─► pipeline
//!                                                                    │ per stage: state, overlay, sandbox (RUN), copy (COPY, ADD)
//!                                                                    │ upper directory ─► layer ─► registry
//!                                                                    └ image: configuration and manifest ─► registry ─► contract::BuildReport
//! ```
//!
//! | question | module |
//! | --- | --- |
//! | what does the file say, and what does the target need? | [`containerfile`], [`ignore`], [`state`] |
//! | which image, which bytes? | [`reference`], [`digest`], [`image`] |
//! | where are images, and how do their bytes come and go? | [`registry`], [`layout`], [`store`], [`tee`], [`pull`], [`unpack`], [`ostree`] |
//! | where do a stage's writes go, and how does a step run? | [`overlay`], [`flat`], [`root`], [`copy`], [`fetch`], [`sandbox`], [`shortage`] |
//! | how do changes become a layer? | [`layer`] |
//! | in which order? who watches? who is told? | [`pipeline`], [`stop`], [`progress`], [`contract`], [`error`] |
//!
//! Pure modules decide, modules named for their effect touch the world; nothing here knows Kubernetes.

mod attributes;
pub mod containerfile;
pub mod contract;
pub mod copy;
pub mod decompress;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod fetch;
#[cfg(test)]
mod fixtures;
pub mod flat;
pub mod ignore;
pub mod image;
pub mod layer;
pub mod layout;
pub mod open_files;
pub mod ostree;
pub mod overlay;
pub mod pipeline;
pub mod progress;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod root;
pub mod sandbox;
pub mod shortage;
pub mod state;
pub mod stop;
pub mod store;
pub mod tee;
pub mod unpack;
