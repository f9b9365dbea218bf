//! Builds a bootable-container image from a Containerfile and pushes it by digest.

pub mod containerfile;
pub mod contract;
pub mod copy;
pub mod digest;
pub mod doctor;
pub mod error;
pub mod ignore;
pub mod image;
pub mod layer;
pub mod overlay;
pub mod reference;
pub mod registry;
pub mod root;
pub mod sandbox;
pub mod state;
