use super::*;

fn variable(name: &str) -> Option<String> {
    let value = match name {
        "a" => "one",
        "path" => "/usr/lib/lib/x.tar.gz",
        "spaced" => "two words",
        "empty" => "",
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
        ("'' x", vec!["", "x"]),
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
