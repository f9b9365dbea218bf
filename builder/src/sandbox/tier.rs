//! Which ways to run a build are there? A ladder: each tier needs less than the one before it, and gives less; pure.

use serde::{Deserialize, Serialize};

/// How the builder gets namespaces and mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// CAP_SYS_ADMIN where we are: a private mount namespace only.
    Root,
    /// A nested user namespace in which the ids stay the same; we write its maps.
    Userns,
    /// A user namespace with our own id and subordinate ones; `newuidmap` and `newgidmap` write its maps.
    Rootless,
}

impl Tier {
    /// All, best first: `auto` takes the first that is allowed.
    pub const LADDER: [Self; 3] = [Self::Root, Self::Userns, Self::Rootless];

    /// As on the command line and in the report.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Userns => "userns",
            Self::Rootless => "rootless",
        }
    }
}
