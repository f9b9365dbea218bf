//! What does each instruction change in the image's configuration, and how does the history name it?

use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use super::{StageState, StateError};
use crate::containerfile::{
    ArgDeclaration, CommandForm, Healthcheck, Instruction, Run, Transfer, Word,
};

pub(super) fn apply(
    state: &mut StageState,
    instruction: &Instruction,
) -> Result<String, StateError> {
    match instruction {
        Instruction::Run(Run {
            command, heredocs, ..
        }) => Ok(format!(
            "RUN {}",
            state.command_line(command, heredocs).argv.join(" ")
        )),
        Instruction::Copy(transfer) => describe_transfer(state, "COPY", transfer),
        Instruction::Add(transfer) => describe_transfer(state, "ADD", transfer),
        Instruction::Arg(declarations) => arg(state, declarations),
        Instruction::Env(pairs) => env(state, pairs),
        Instruction::Label(pairs) => label(state, pairs),
        Instruction::Workdir(word) => workdir(state, word),
        Instruction::User(word) => {
            let user = state.expand(word)?;
            state.image.config.user.clone_from(&user);
            Ok(format!("USER {user}"))
        }
        Instruction::Shell(shell) => {
            set_extension(state, "Shell", json!(shell));
            Ok(format!("SHELL {}", bracketed(shell)))
        }
        Instruction::Cmd(command) => {
            let argv = argv(state, command);
            let text = format!("CMD {}", quoted(&argv));
            state.image.config.cmd = Some(argv);
            state.has_cmd = true;
            Ok(text)
        }
        Instruction::Entrypoint(command) => {
            let argv = argv(state, command);
            let text = format!("ENTRYPOINT {}", quoted(&argv));
            state.image.config.entrypoint = Some(argv);
            if !state.has_cmd {
                state.image.config.cmd = None;
            }
            Ok(text)
        }
        Instruction::Expose(words) => expose(state, words),
        Instruction::StopSignal(word) => {
            let signal = state.expand(word)?;
            if !is_signal(&signal) {
                return Err(StateError::Signal(signal));
            }
            state.image.config.stop_signal = Some(signal.clone());
            Ok(format!("STOPSIGNAL {signal}"))
        }
        Instruction::Volume(words) => volume(state, words),
        Instruction::Maintainer(name) => {
            state
                .image
                .other
                .insert("author".to_owned(), Value::String(name.clone()));
            Ok(format!("MAINTAINER {name}"))
        }
        Instruction::Healthcheck(check) => Ok(healthcheck(state, check)),
        Instruction::Onbuild(trigger) => {
            let mut triggers = state.extension_strings("OnBuild");
            triggers.push(trigger.clone());
            set_extension(state, "OnBuild", json!(triggers));
            Ok(format!("ONBUILD {trigger}"))
        }
    }
}

/// A value from outside may be a secret; the history shows defaults only.
fn arg(state: &mut StageState, declarations: &[ArgDeclaration]) -> Result<String, StateError> {
    let mut text = "ARG".to_owned();
    for declaration in declarations {
        state.declare(declaration)?;
        text.push(' ');
        text.push_str(&declaration.name);
        if let Some(default) = &declaration.default {
            text.push('=');
            text.push_str(&default.0);
        }
    }
    Ok(text)
}

/// All values see the environment from before the instruction: `ENV a=1 b=$a` is no `b=1`.
fn expand_pairs(
    state: &StageState,
    pairs: &[(Word, Word)],
) -> Result<Vec<(String, String)>, StateError> {
    pairs
        .iter()
        .map(|(name, value)| Ok((state.expand(name)?, state.expand(value)?)))
        .collect()
}

fn pairs_text(instruction: &str, pairs: &[(Word, Word)]) -> String {
    let mut text = instruction.to_owned();
    for (name, value) in pairs {
        text.push(' ');
        text.push_str(&name.0);
        text.push('=');
        text.push_str(&value.0);
    }
    text
}

fn env(state: &mut StageState, pairs: &[(Word, Word)]) -> Result<String, StateError> {
    for (name, value) in expand_pairs(state, pairs)? {
        if name.is_empty() {
            return Err(StateError::Empty { instruction: "ENV" });
        }
        state.set_env(&name, value);
    }
    // as written: an expanded value may hold what came in by a build argument
    Ok(pairs_text("ENV", pairs))
}

fn label(state: &mut StageState, pairs: &[(Word, Word)]) -> Result<String, StateError> {
    let expanded = expand_pairs(state, pairs)?;
    if expanded.iter().any(|(name, _)| name.is_empty()) {
        return Err(StateError::Empty {
            instruction: "LABEL",
        });
    }
    let labels = state.image.config.labels.get_or_insert_default();
    labels.extend(expanded);
    Ok(pairs_text("LABEL", pairs))
}

/// As both other builders: an absolute one stays as written, a relative one is joined, one that expands to nothing changes nothing.
fn workdir(state: &mut StageState, word: &Word) -> Result<String, StateError> {
    let asked = state.expand(word)?;
    let workdir = match asked.starts_with('/') {
        true => asked,
        false => joined(state.workdir(), &asked),
    };
    let text = format!("WORKDIR {workdir}");
    state.image.config.working_dir = workdir;
    Ok(text)
}

/// `path` seen from `base`, without `.`, `..` and repeated or trailing slashes.
pub(super) fn joined(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

fn argv(state: &StageState, command: &CommandForm) -> Vec<String> {
    match command {
        CommandForm::Exec(argv) => argv.clone(),
        CommandForm::Shell(line) => {
            let mut argv = state.shell();
            argv.push(line.clone());
            argv
        }
    }
}

fn expose(state: &mut StageState, words: &[Word]) -> Result<String, StateError> {
    let mut ports = Vec::new();
    // as the history of other builders has them
    let mut words: Vec<&Word> = words.iter().collect();
    words.sort_by_key(|word| &word.0);
    for word in words {
        for spec in state.split(word)? {
            ports.extend(port_range(&spec).ok_or(StateError::Port(spec))?);
        }
    }
    let exposed = state.image.config.exposed_ports.get_or_insert_default();
    for port in &ports {
        exposed.insert(port.clone(), json!({}));
    }
    Ok(format!("EXPOSE {}", bracketed(&ports)))
}

/// `[[ADDRESS:]HOST:]PORT[-LAST][/PROTOCOL]` → `PORT/protocol` for each; what belongs to the host
/// means nothing in an image, but must make sense.
fn port_range(spec: &str) -> Option<Vec<String>> {
    let (of_host, port) = spec.rsplit_once(':').unwrap_or(("", spec));
    let (range, protocol) = port.split_once('/').unwrap_or((port, ""));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => "tcp",
        "udp" => "udp",
        "sctp" => "sctp",
        _ => return None,
    };
    let ports = ports(range)?;
    let (address, host) = of_host.rsplit_once(':').unwrap_or(("", of_host));
    let address = address
        .strip_prefix('[')
        .map_or(Some(address), |rest| rest.strip_suffix(']'))?;
    if !address.is_empty() && address.parse::<IpAddr>().is_err() {
        return None;
    }
    if !host.is_empty() && self::ports(host)?.len() != ports.len() && ports.len() > 1 {
        return None;
    }
    Some(ports.map(|port| format!("{port}/{protocol}")).collect())
}

/// `FIRST[-LAST]`
fn ports(range: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn volume(state: &mut StageState, words: &[Word]) -> Result<String, StateError> {
    let paths = state.expand_all(words)?;
    if paths.iter().any(String::is_empty) {
        return Err(StateError::Empty {
            instruction: "VOLUME",
        });
    }
    let volumes = state.image.config.volumes.get_or_insert_default();
    for path in &paths {
        volumes.insert(path.clone(), json!({}));
    }
    Ok(format!("VOLUME {}", bracketed(&paths)))
}

fn healthcheck(state: &mut StageState, check: &Healthcheck) -> String {
    let mut value = Map::new();
    let text = match check {
        Healthcheck::None => {
            value.insert("Test".to_owned(), json!(["NONE"]));
            health_text(&["NONE".to_owned()], [None; 4], None)
        }
        Healthcheck::Command {
            command,
            interval_nanos,
            timeout_nanos,
            start_period_nanos,
            start_interval_nanos,
            retries,
        } => {
            let test = match command {
                CommandForm::Shell(line) => vec!["CMD-SHELL".to_owned(), line.clone()],
                CommandForm::Exec(argv) => {
                    let mut test = vec!["CMD".to_owned()];
                    test.extend(argv.iter().cloned());
                    test
                }
            };
            let nanos = [
                *interval_nanos,
                *timeout_nanos,
                *start_period_nanos,
                *start_interval_nanos,
            ];
            let text = health_text(&test, nanos, *retries);
            value.insert("Test".to_owned(), json!(test));
            let times = [
                ("Interval", interval_nanos),
                ("Timeout", timeout_nanos),
                ("StartPeriod", start_period_nanos),
                ("StartInterval", start_interval_nanos),
            ];
            for (key, nanos) in times {
                if let Some(nanos) = nanos {
                    value.insert(key.to_owned(), json!(nanos));
                }
            }
            if let Some(retries) = retries {
                value.insert("Retries".to_owned(), json!(retries));
            }
            text
        }
    };
    set_extension(state, "Healthcheck", Value::Object(value));
    text
}

/// As Go prints the fields.
fn health_text(test: &[String], nanos: [Option<u64>; 4], retries: Option<u32>) -> String {
    let [interval, timeout, start_period, start_interval] =
        nanos.map(|nanos| duration(nanos.unwrap_or(0)));
    format!(
        "HEALTHCHECK {{Test:{} Interval:{interval} Timeout:{timeout} StartPeriod:{start_period} StartInterval:{start_interval} Retries:{}}}",
        bracketed(test),
        retries.unwrap_or(0),
    )
}

/// As Go writes a duration of none or of at least a millisecond: `1h0m0.5s`, `1.5ms`.
fn duration(nanos: u64) -> String {
    let fraction = |value: u64, unit: u64| {
        let digits = format!("{:0width$}", value % unit, width = unit.ilog10() as usize);
        let digits = digits.trim_end_matches('0');
        match digits {
            "" => (value / unit).to_string(),
            digits => format!("{}.{digits}", value / unit),
        }
    };
    if (1..1_000_000_000).contains(&nanos) {
        return format!("{}ms", fraction(nanos, 1_000_000));
    }
    let (minutes, rest) = (nanos / 60_000_000_000, nanos % 60_000_000_000);
    let seconds = fraction(rest, 1_000_000_000);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn describe_transfer(
    state: &StageState,
    instruction: &str,
    transfer: &Transfer,
) -> Result<String, StateError> {
    let mut text = instruction.to_owned();
    if transfer.parents {
        text.push_str(" --parents");
    }
    for (flag, value) in [("chown", &transfer.chown), ("chmod", &transfer.chmod)] {
        if let Some(value) = value {
            text.push_str(&format!(" --{flag}={}", value.0));
        }
    }
    for source in &transfer.sources {
        text.push_str(&format!(" {}", source.0));
    }
    for heredoc in &transfer.heredocs {
        text.push_str(&format!(" <<{}", heredoc.name));
    }
    text.push_str(&format!(" {}", state.expand(&transfer.destination)?));
    Ok(text)
}

fn set_extension(state: &mut StageState, key: &str, value: Value) {
    state.image.config.other.insert(key.to_owned(), value);
}

fn bracketed(values: &[String]) -> String {
    format!("[{}]", values.join(" "))
}

fn quoted(values: &[String]) -> String {
    let values: Vec<String> = values.iter().map(|value| go_quoted(value)).collect();
    format!("[{}]", values.join(" "))
}

fn go_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            '\t' | '\r' | '\n' | '\\' | '"' => out.extend(c.escape_default()),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() || (c.is_whitespace() && c != ' ') => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out + "\""
}

/// Linux signals that have a name, without SIG.
const SIGNALS: [&str; 36] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "RTMAX", "RTMIN", "SEGV", "STKFLT", "STOP", "SYS",
    "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU",
    "XFSZ",
];

/// A number from 1, or a name with or without SIG; RTMIN+1 to RTMIN+15 and RTMAX-1 to RTMAX-14.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u32>() {
        return number > 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |prefix: &str, most: u32| {
        let number = name.strip_prefix(prefix)?.parse::<u32>().ok()?;
        Some((1..=most).contains(&number))
    };
    SIGNALS.contains(&name)
        || offset("RTMIN+", 15).unwrap_or(false)
        || offset("RTMAX-", 14).unwrap_or(false)
}
