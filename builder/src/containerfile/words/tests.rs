use super::*;

fn variable(name: &str) -> Option<String> {
    let value = match name {
        "a" => "one",
        "path" => "/usr/lib/lib/x.tar.gz",
        "spaced" => "two words",
        "empty" | "none" => "",
        "stars" => "**x",
        "slashed" => "a\\*b",
        "1" => "first",
        _ => return None,
    };
    Some(value.to_owned())
}

#[test]
fn words_expand_as_in_buildkit() {
    let table = r#"
        plain               | plain
        'single $a'         | single $a
        "double $a"         | double one
        $a$a                | oneone
        ${a}x               | onex
        $unset              |
        ${unset}y           | y
        \$a                 | $a
        "\$a"               | $a
        "\n"                | \n
        '\''                | error
        $                   | $
        $1                  | first
        a$                  | a$
        ${a:-other}         | one
        ${empty:-other}     | other
        ${empty-other}      |
        ${unset-other}      | other
        ${unset:-$a}        | one
        ${unset:-${a:-x}}   | one
        ${a:+yes}           | yes
        ${empty:+yes}       |
        ${empty+yes}        | yes
        ${unset+yes}        |
        ${unset:?gone}      | error
        ${a:?gone}          | one
        ${a?gone}           | one
        ${path#*/}          | usr/lib/lib/x.tar.gz
        ${path##*/}         | x.tar.gz
        ${path%.*}          | /usr/lib/lib/x.tar
        ${path%%.*}         | /usr/lib/lib/x
        ${path/lib/L}       | /usr/L/lib/x.tar.gz
        ${path//lib/L}      | /usr/L/L/x.tar.gz
        ${path//lib/}       | /usr///x.tar.gz
        ${path/%.gz/x}      | /usr/lib/lib/x.tar.gz
        ${path/lib}         | error
        ${path/lib\//}      | /usr/lib/x.tar.gz
        ${path/l?b/$a}      | /usr/one/lib/x.tar.gz
        ${path//[a-z]/}     | /usr/lib/lib/x.tar.gz
        ${path##*\/}        | x.tar.gz
        ${path#'*/'}        | usr/lib/lib/x.tar.gz
        ${stars#\*}         | *x
        ${stars%%\**}       |
        ${stars#\x}         | error
        ${stars#"\d"}       | **x
        ${stars/$none/w}    | w**x
        ${a//$none/-}       | -o-n-e-
        ${a//*/-}           | -
        ${a:#o}             | error
        ${a:%e}             | error
        ${slashed#'a\*'}     | *b
        ${slashed#"a\\"}     | *b
        ${slashed/'\'/-}     | a-*b
        ${a/o/'\n'}          | \nne
        ${a:/e/x}           | error
        ${a:}               | error
        ${a=x}              | error
        ${unset#x}          |
        ${unset:-'a}b'}     | a}b
        ${unset:-a\}b}      | a}b
        ${unset:-"$a"}      | one
        "${unset:-'x'}"     | x
        ${{a}               | error
        ${:a}               | error
        $$a                 | a
        $-x                 | x
        a\                  | a
        "a\                 | error
        'a                  | error
        한$KOREAN           | 한
        ${a^^}              | error
        ${a                 | error
        ${}                 | error
        "open               | error
        é$a                 | éone
    "#;
    for row in table.lines().filter(|row| !row.trim().is_empty()) {
        let (input, expected) = row.split_once('|').unwrap();
        let got = expand(&Word(input.trim().to_owned()), '\\', &variable);
        assert_eq!(
            got.unwrap_or_else(|_| "error".to_owned()),
            expected.trim(),
            "{row}"
        );
    }
}

#[test]
fn unquoted_white_space_splits_and_quoted_does_not() {
    for (input, expected) in [
        ("a b", vec!["a", "b"]),
        ("$spaced", vec!["two", "words"]),
        ("\"$spaced\"", vec!["two words"]),
        ("'' x", vec!["x"]),
        ("a''b c", vec!["ab", "c"]),
        ("  lead\\ ing ", vec!["lead ing"]),
        ("$unset", vec![]),
    ] {
        assert_eq!(
            split(&Word(input.to_owned()), '\\', &variable).unwrap(),
            expected,
            "{input}"
        );
    }
}

#[test]
fn the_escape_directive_changes_the_escape() {
    assert_eq!(
        expand(&Word("`$a \\$a".to_owned()), '`', &variable).unwrap(),
        "$a \\one"
    );
}

#[test]
fn text_keeps_its_quotes() {
    let text = "it's \"$a\" and '$a', \\$a\n";
    assert_eq!(
        expand_text(text, '\\', &variable).unwrap(),
        "it's \"one\" and 'one', $a\n"
    );
}

#[test]
fn endless_nesting_is_an_error_and_no_crash() {
    let text = "${x:-".repeat(200_000);
    let got = expand(&Word(text), '\\', &variable);
    assert_eq!(got, Err(WordError::Depth));
}

/// The tables of other builders, which are not ours to ship: `TAG|input|expected` with A, U, W for
/// all, Unix, Windows, and `input | word,word` between `ENV name=value` lines.
#[test]
fn tables_of_other_builders_pass_if_they_are_given() {
    let Ok(folder) = std::env::var("STRATA_SHELL_TABLES") else {
        println!("skipped: STRATA_SHELL_TABLES names no folder with envVarTest and wordsTest");
        return;
    };
    let folder = std::path::Path::new(&folder);
    let given = [
        ("PWD", "/home"),
        ("SHELL", "bash"),
        ("KOREAN", "한국어"),
        ("NULL", ""),
    ];
    let lookup = |name: &str| {
        let found = given.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let table = std::fs::read_to_string(folder.join("envVarTest")).unwrap();
    for row in table.lines().map(str::trim) {
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let [tag, input, expected] = row.split('|').collect::<Vec<_>>()[..] else {
            panic!("a row of three: {row}")
        };
        if tag.trim() != "W" {
            let got = expand(&Word(input.trim().to_owned()), '\\', &lookup);
            assert_eq!(
                got.unwrap_or_else(|_| "error".to_owned()),
                expected.trim(),
                "{row}"
            );
        }
    }
    let mut set: Vec<(String, String)> = Vec::new();
    let table = std::fs::read_to_string(folder.join("wordsTest")).unwrap();
    for row in table.lines() {
        if row.starts_with('#') {
            continue;
        }
        if let Some(variable) = row.strip_prefix("ENV ") {
            let (name, value) = variable.trim_start().split_once('=').unwrap();
            set.push((name.to_owned(), value.to_owned()));
            continue;
        }
        let (input, expected) = row.split_once('|').unwrap();
        let lookup = |name: &str| {
            let found = set.iter().rfind(|(known, _)| known == name);
            found.map(|(_, value)| value.clone())
        };
        let got = split(&Word(input.trim().to_owned()), '\\', &lookup);
        let got = got.unwrap_or_else(|_| vec!["error".to_owned()]);
        assert_eq!(got.join(","), expected.trim_start(), "{row}");
    }
}
