//! What happens in a history, in which order? One action a line: a verb and a number that picks its object.
//!
//! A number picks round and round among the objects that are there, and an action without an object does nothing, so
//! every script can be replayed, also one from which lines were taken out.

use std::fmt;
use std::str::FromStr;

use proptest::prelude::*;

/// Declares [`Verb`] so that variant, spelling and how often it is chosen stand in one line.
macro_rules! verbs {
    ($($(#[$doc:meta])* $variant:ident $name:literal $weight:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Verb { $($(#[$doc])* $variant,)* }

        const VERBS: &[(Verb, &str, u32)] = &[$((Verb::$variant, $name, $weight),)*];
    };
}

verbs! {
    // the controller
    /// The next piece of work of a pass, or the begin of one that is due.
    Pass "pass" 25,
    /// A watch tells its oldest event.
    Tell "tell" 15,
    /// It tells it, and will tell it again.
    TellTwice "tell-twice" 1,
    /// A watch breaks and lists anew: what happened in between is never told.
    Relist "relist" 1,
    /// The controller is killed at once and starts again.
    Crash "crash" 2,
    /// It is killed and stays away.
    Stop "stop" 2,
    /// It starts, if it is away.
    Start "start" 2,
    /// The next write fails.
    WriteFails "write-fails" 1,
    /// The next write is refused: by a quota, a webhook, or for want of a right.
    Refuse "refuse" 2,
    /// The next write is done, but its answer is lost.
    AnswerLost "answer-lost" 1,
    /// The next read fails.
    ReadFails "read-fails" 1,
    /// While it is away, the incumbent makes a build its own.
    Unguard "unguard" 3,
    /// Another writer touches a config.
    TouchConfig "touch-config" 1,
    /// Another writer touches a build.
    TouchBuild "touch-build" 1,
    /// The settings say how many builds may run at the same time.
    Limit "limit" 2,
    /// The watches tell all they have, and the controller does all that is due; nothing else moves.
    Works "works" 14,
    /// Everything goes on fairly for as many rounds.
    Calm "calm" 4,

    // users
    /// A config comes, if it isn't there.
    Create "create" 4,
    /// The same, with an image to start with.
    Seed "seed" 1,
    /// Another Containerfile, maybe one that was there before.
    Edit "edit" 6,
    /// The rebuild annotation.
    Rebuild "rebuild" 3,
    /// Fewer builds stay from now on, or more.
    Retain "retain" 2,
    /// A config is deleted.
    DeleteConfig "delete-config" 1,
    /// A build is deleted by hand.
    DeleteBuild "delete-build" 1,
    /// A build is deleted by hand, its Job first.
    DeleteBuildForeground "delete-build-foreground" 1,
    /// A Job is deleted by hand.
    DeleteJob "delete-job" 1,
    /// The push secret vanishes.
    SecretGone "secret-gone" 1,
    /// It comes back.
    SecretBack "secret-back" 2,

    // pools and nodes
    /// A pool wants another rendered MachineConfig, maybe one from before.
    MovePool "move-pool" 3,
    /// A pool is degraded.
    PoolBad "pool-bad" 1,
    /// It is well again.
    PoolWell "pool-well" 2,
    /// A node is to have the image of its config.
    NodeWants "node-wants" 2,
    /// A node has what it is to have.
    NodeHas "node-has" 2,

    /// A node stages the image of its config, or forgets it.
    NodeStages "node-stages" 1,
    /// A MachineConfig names the image of a config, or no longer.
    Pin "pin" 1,
    /// The image of a build is to stay, or no longer.
    KeepImage "keep-image" 1,
    /// A node goes back to the image that it had without a config.
    NodeLeaves "node-leaves" 1,

    // Jobs
    /// A Job gets a pod.
    PodStarts "pod-starts" 8,
    /// A pod pushes.
    PodPushes "pod-pushes" 5,
    /// A pod ends well.
    PodEnds "pod-ends" 5,
    /// A step of the Containerfile fails.
    PodFails "pod-fails" 1,
    /// A pod ends for a cause that may pass.
    PodBreaks "pod-breaks" 1,
    /// A pod is evicted.
    PodEvicted "pod-evicted" 1,
    /// A pod is lost with its node.
    PodLost "pod-lost" 1,
    /// A pod that was told to end has ended.
    PodGoes "pod-goes" 4,
    /// The Job controller looks at a Job.
    JobLooks "job-looks" 6,
    /// A Job has lasted too long.
    JobLate "job-late" 1,
    /// The garbage collector does one thing.
    Collect "collect" 8,

    // the registry
    /// It doesn't answer.
    RegistryDown "registry-down" 3,
    /// It does.
    RegistryUp "registry-up" 2,
    /// What was pushed is not served yet.
    RegistryLate "registry-late" 1,
    /// Deletion is forbidden from now on.
    RegistryKeeps "registry-keeps" 1,
    /// Somebody deletes an image there.
    RegistryLoses "registry-loses" 1,

    /// Another cluster pushes under the tag of a build.
    PushTheirs "push-theirs" 1,

    // time
    /// Seconds pass.
    Wait "wait" 4,
    /// Minutes pass.
    WaitLong "wait-long" 1,
}

/// A line of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) verb: Verb,
    pub(super) n: u8,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, name, _) = VERBS.iter().find(|(verb, ..)| *verb == self.verb).unwrap();
        write!(f, "{name} {}", self.n)
    }
}

impl FromStr for Action {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let wrong = || format!("no action: {line:?}");
        let (name, n) = line.split_once(' ').ok_or_else(wrong)?;
        let (verb, ..) = VERBS
            .iter()
            .find(|(_, one, _)| *one == name)
            .ok_or_else(wrong)?;
        Ok(Self {
            verb: *verb,
            n: n.parse().map_err(|_| wrong())?,
        })
    }
}

/// The actions of a text; indentation, empty lines and what follows a `#` don't count.
pub(super) fn parse(text: &str) -> Result<Vec<Action>, String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
        .map(str::parse)
        .collect()
}

/// Any script of at most so many lines.
pub(super) fn scripts(longest: usize) -> impl Strategy<Value = Vec<Action>> {
    let bag: Vec<Verb> = VERBS
        .iter()
        .flat_map(|(verb, _, weight)| std::iter::repeat_n(*verb, *weight as usize))
        .collect();
    let action = (prop::sample::select(bag), 0..16_u8).prop_map(|(verb, n)| Action { verb, n });
    prop::collection::vec(action, 1..=longest)
}
