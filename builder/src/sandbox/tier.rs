//! Which ways to run a build are there? A ladder: each tier needs less than the one before it, and gives less; pure.
//!
//! A tier is two answers: by which rights the builder gets namespaces, and how the files of stages are kept.

use serde::{Deserialize, Serialize};

/// How the builder gets namespaces and mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rights {
    /// CAP_SYS_ADMIN where we are: a private mount namespace only.
    Root,
    /// A nested user namespace in which the ids stay the same; we write its maps.
    Userns,
    /// A user namespace with our own id and subordinate ones; `newuidmap` and `newgidmap` write its maps.
    Rootless,
    /// None at all: no step can run.
    None,
}

/// How the files of stages are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Storage {
    /// A stage's changes lie in a directory of their own, over those of what it starts from.
    Overlay,
    /// They lie in one tree with them ([`crate::flat`]).
    Flat,
}

/// Rights and storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// With the rights of root.
    Root,
    /// In a user namespace with this one's ids.
    Userns,
    /// As an ordinary user with subordinate ids.
    Rootless,
    /// [`Tier::Root`] without overlays.
    RootFlat,
    /// [`Tier::Userns`] without overlays.
    UsernsFlat,
    /// [`Tier::Rootless`] without overlays.
    RootlessFlat,
    /// Only files: copied, not run; owners are kept in our own records ([`crate::attributes`]).
    Copy,
}

impl Tier {
    /// All, best first: `auto` takes the first that is allowed.
    pub const LADDER: [Self; 7] = [
        Self::Root,
        Self::Userns,
        Self::Rootless,
        Self::RootFlat,
        Self::UsernsFlat,
        Self::RootlessFlat,
        Self::Copy,
    ];

    /// As on the command line and in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Userns => "userns",
            Self::Rootless => "rootless",
            Self::RootFlat => "root-flat",
            Self::UsernsFlat => "userns-flat",
            Self::RootlessFlat => "rootless-flat",
            Self::Copy => "copy",
        }
    }

    /// By which rights it runs.
    #[must_use]
    pub const fn rights(self) -> Rights {
        match self {
            Self::Root | Self::RootFlat => Rights::Root,
            Self::Userns | Self::UsernsFlat => Rights::Userns,
            Self::Rootless | Self::RootlessFlat => Rights::Rootless,
            Self::Copy => Rights::None,
        }
    }

    /// How it keeps files.
    #[must_use]
    pub const fn storage(self) -> Storage {
        match self {
            Self::Root | Self::Userns | Self::Rootless => Storage::Overlay,
            Self::RootFlat | Self::UsernsFlat | Self::RootlessFlat | Self::Copy => Storage::Flat,
        }
    }
}

impl Rights {
    /// All, best first.
    pub const ALL: [Self; 4] = [Self::Root, Self::Userns, Self::Rootless, Self::None];

    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Userns => "userns",
            Self::Rootless => "rootless",
            Self::None => "none",
        }
    }
}
