//! What kind of failure is this, and who can end it?
//!
//! Every error of both crates answers [`Class`] from a match without a wildcard; the class decides
//! between a retry, a condition on the user's object and an error log, and the builder's exit code.

use std::io::{self, ErrorKind};

use serde::{Deserialize, Serialize};

/// Who can make the failure go away. In a report it is one word: [`Class::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Class {
    /// May pass by itself: a network that resets, a registry that is busy.
    Transient,
    /// Somebody must change an object or a right.
    User(UserCause),
    /// A bug, or an environment that won't change.
    Permanent(PermanentCause),
}

/// What the user has to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UserCause {
    /// The content: a Containerfile, a context, a step that failed.
    Content,
    /// A right: credentials, access to a repository.
    Rights,
}

/// Why it will stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PermanentCause {
    /// The caller asked for something that the contract doesn't know.
    Contract,
    /// Ours, or the machine's.
    Internal,
}

impl Class {
    /// A step or file that its author must change.
    pub const CONTENT: Class = Class::User(UserCause::Content);
    /// A right that somebody must grant.
    pub const RIGHTS: Class = Class::User(UserCause::Rights);
    /// A wrong call of this program.
    pub const CONTRACT: Class = Class::Permanent(PermanentCause::Contract);
    /// A bug or an unsuitable machine.
    pub const INTERNAL: Class = Class::Permanent(PermanentCause::Internal);

    const ALL: [Class; 5] = [
        Class::Transient,
        Class::CONTENT,
        Class::RIGHTS,
        Class::CONTRACT,
        Class::INTERNAL,
    ];

    /// As reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Class::Transient => "transient",
            Class::User(UserCause::Content) => "content",
            Class::User(UserCause::Rights) => "rights",
            Class::Permanent(PermanentCause::Contract) => "contract",
            Class::Permanent(PermanentCause::Internal) => "internal",
        }
    }

    /// The builder's exit code, from sysexits: 75 tempfail, 65 dataerr, 77 noperm, 64 usage, 70 software.
    #[must_use]
    pub const fn exit_code(self) -> u8 {
        match self {
            Class::Transient => 75,
            Class::User(UserCause::Content) => 65,
            Class::User(UserCause::Rights) => 77,
            Class::Permanent(PermanentCause::Contract) => 64,
            Class::Permanent(PermanentCause::Internal) => 70,
        }
    }
}

impl From<Class> for &'static str {
    fn from(class: Class) -> Self {
        class.name()
    }
}

/// A word that names no class.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no class of failures")]
pub struct UnknownClass(String);

impl TryFrom<String> for Class {
    type Error = UnknownClass;

    fn try_from(name: String) -> Result<Self, UnknownClass> {
        let mut all = Self::ALL.into_iter();
        all.find(|class| class.name() == name)
            .ok_or(UnknownClass(name))
    }
}

/// True if there was no room on a disk: there may be some elsewhere, or later.
#[must_use]
pub fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded)
}

impl Class {
    /// Of a failure at a file that somebody named: it isn't what it should be, they may not have it, this machine will never have it; or the machine has a bad moment,
    /// as with a full disk.
    #[must_use]
    pub fn of_file(error: &io::Error) -> Class {
        match error.kind() {
            ErrorKind::NotFound
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::InvalidData
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename => Class::CONTENT,
            ErrorKind::PermissionDenied => Class::RIGHTS,
            ErrorKind::ReadOnlyFilesystem | ErrorKind::Unsupported => Class::INTERNAL,
            _ => Class::Transient,
        }
    }
}

/// An error that knows its class.
pub trait Classify {
    /// The class of this failure.
    fn class(&self) -> Class;
}

/// The error and its causes, joined by `: `.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let told = error.to_string();
        // a transparent wrapper repeats its source
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_one_word_in_a_report() {
        for (class, word) in [
            (Class::Transient, "transient"),
            (Class::CONTENT, "content"),
            (Class::RIGHTS, "rights"),
            (Class::CONTRACT, "contract"),
            (Class::INTERNAL, "internal"),
        ] {
            let encoded = serde_json::to_value(class).unwrap();
            assert_eq!(encoded, word);
            assert_eq!(serde_json::from_value::<Class>(encoded).unwrap(), class);
        }
        assert!(serde_json::from_str::<Class>("\"user\"").is_err());
    }

    #[test]
    fn a_file_that_cannot_be_used_is_somebodys_and_a_full_disk_is_nobodys() {
        for (kind, class) in [
            (ErrorKind::NotFound, Class::CONTENT),
            (ErrorKind::InvalidData, Class::CONTENT),
            (ErrorKind::PermissionDenied, Class::RIGHTS),
            (ErrorKind::ReadOnlyFilesystem, Class::INTERNAL),
            (ErrorKind::StorageFull, Class::Transient),
            (ErrorKind::QuotaExceeded, Class::Transient),
            (ErrorKind::OutOfMemory, Class::Transient),
            (ErrorKind::TimedOut, Class::Transient),
            (ErrorKind::Other, Class::Transient),
        ] {
            assert_eq!(Class::of_file(&kind.into()), class, "{kind:?}");
        }
    }
}
