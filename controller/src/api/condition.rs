//! Which conditions does an object have, and which differ?
//!
//! A condition's transition time changes only with its status, so that an unchanged state writes nothing.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The longest message that the apiserver accepts, in characters.
pub const MESSAGE_LIMIT: usize = 32768;

/// The incumbent's condition of a MachineOSConfig that was given an image to start with; its message names the image.
pub const SEEDED: &str = "Seeded";

/// What a condition says, without the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Which condition.
    pub type_: &'static str,
    /// Whether it holds.
    pub holds: bool,
    /// CamelCase cause.
    pub reason: String,
    /// For a reader; shortened to [`MESSAGE_LIMIT`] when set.
    pub message: String,
}

/// The condition of this type.
#[must_use]
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Makes `conditions` say it; true if that changed anything but a time.
pub fn set(conditions: &mut Vec<Condition>, statement: Statement, now: Timestamp) -> bool {
    let Statement {
        type_,
        holds,
        reason,
        message,
    } = statement;
    let mut wanted = Condition {
        last_transition_time: Time(whole_second(now)),
        message: shorten(&message, MESSAGE_LIMIT),
        observed_generation: None,
        reason,
        status: if holds { "True" } else { "False" }.to_owned(),
        type_: type_.to_owned(),
    };
    match conditions.iter_mut().find(|known| known.type_ == type_) {
        None => conditions.push(wanted),
        Some(known) => {
            if known.status == wanted.status {
                wanted.last_transition_time = known.last_transition_time.clone();
            }
            if *known == wanted {
                return false;
            }
            *known = wanted;
        }
    }
    true
}

/// The wire has whole seconds; anything finer would differ from what is read back.
#[must_use]
pub fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// `text` in at most `limit` characters: its middle makes way, since the beginning names the failure
/// and the end holds the last lines of output.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> String {
    const MARK: &str = "\n[…]\n";
    let length = text.chars().count();
    if length <= limit {
        return text.to_owned();
    }
    let room = limit.saturating_sub(MARK.chars().count());
    let head: String = text.chars().take(room / 2).collect();
    let tail: String = text.chars().skip(length - (room - room / 2)).collect();
    format!("{head}{MARK}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn statement(holds: bool, message: &str) -> Statement {
        Statement {
            type_: "Failed",
            holds,
            reason: "Failed".to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn a_transition_time_changes_only_with_the_status() {
        let mut conditions = Vec::new();
        assert!(set(&mut conditions, statement(false, "one"), at(1)));
        assert!(!set(&mut conditions, statement(false, "one"), at(2)));
        assert!(set(&mut conditions, statement(false, "two"), at(3)));
        assert_eq!(conditions[0].last_transition_time, Time(at(1)));
        assert!(set(&mut conditions, statement(true, "two"), at(4)));
        assert_eq!(conditions[0].last_transition_time, Time(at(4)));
        assert!(is_true(&conditions, "Failed"));
    }

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let text = format!("begin{}end", "é".repeat(MESSAGE_LIMIT));
        let short = shorten(&text, MESSAGE_LIMIT);
        assert_eq!(short.chars().count(), MESSAGE_LIMIT);
        assert!(short.starts_with("begin") && short.ends_with("end") && short.contains("[…]"));
    }
}
