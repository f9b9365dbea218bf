use super::*;

#[test]
fn the_last_pattern_that_matches_decides() {
    // ignore file | excluded | not excluded
    let table: &[(&str, &[&str], &[&str])] = &[
        ("", &[], &["a", "a/b"]),
        ("a", &["a", "a/b", "a/b/c"], &["b/a", "ab"]),
        ("/a/", &["a", "a/b"], &["b/a"]),
        ("./a//b/../c", &["a/c"], &["a/b", "a"]),
        ("*", &["a", "a/b", ".git"], &[]),
        ("*.md\n!README.md", &["a.md"], &["README.md", "a/b.md"]),
        ("!README.md\n*.md", &["README.md"], &[]),
        ("*/temp*", &["a/temp", "a/temp1/b"], &["temp", "a/b/temp"]),
        ("temp?", &["tempa", "tempb/x"], &["temp", "temp/"]),
        ("**/*.go", &["a.go", "a/b/c.go"], &["a.goo"]),
        ("**", &["a", "a/b"], &[]),
        ("a/**", &["a/b", "a/b/c"], &["a", "ab"]),
        ("a/**/b", &["a/b", "a/x/b", "a/x/y/b"], &["a/xb", "b"]),
        ("**foo", &["foo", "a/foo", "afoo", "a/bfoo/c"], &["foob"]),
        ("**.pyc", &[".pyc", "a.pyc", "b/a.pyc"], &["a.py"]),
        ("**foo*", &["foo", "a/foob"], &["afoo"]),
        ("a\n!a/b", &["a", "a/c"], &["a/b", "a/b/c"]),
        ("**\n!a/b/c", &["a", "a/b", "a/b/d"], &["a/b/c"]),
        ("a\n!a/b\na/b/c", &["a/b/c"], &["a/b/d"]),
        ("[a-c]x\n[^a-c]y", &["ax", "dy"], &["dx", "ay"]),
        ("a\\*b", &["a*b"], &["axb"]),
        ("# comment\n\n  b  \n #c", &["b", "#c"], &["comment", "c"]),
        ("\u{feff}a\r\n! a/b \r\n", &["a"], &["a/b"]),
        ("a.b$", &["a.b$"], &["axb"]),
        (".", &[], &["a"]),
    ];
    for (text, excluded, kept) in table {
        let ignore = Ignore::parse(text).unwrap();
        for path in *excluded {
            assert!(ignore.is_excluded(path), "{text:?} excludes {path}");
        }
        for path in *kept {
            assert!(!ignore.is_excluded(path), "{text:?} keeps {path}");
        }
    }
}

#[test]
fn a_walk_goes_into_an_excluded_directory_only_where_something_may_come_back() {
    let table = [
        ("a", "a", false),
        ("a\n!a/b", "a", true),
        ("*\n!a/b/c", "a/b", true),
        ("*\n!a/b/c", "a/x", false),
        ("*\n!a/b/c", "x", false),
        ("*\n!**/x", "anything/at/all", true),
        ("*\n!a/*/x", "a/q", true),
    ];
    for (text, directory, into) in table {
        let ignore = Ignore::parse(text).unwrap();
        assert_eq!(ignore.may_include_below(directory), into, "{text:?}");
    }
}

#[test]
fn a_line_that_is_no_pattern_is_told_with_its_number() {
    let pattern = |line, pattern: &str| IgnoreError::Pattern {
        line,
        pattern: pattern.to_owned(),
    };
    let table = [
        ("a\n[", pattern(2, "[")),
        ("[]", pattern(1, "[]")),
        ("[b-a]", pattern(1, "[b-a]")),
        ("x\\", pattern(1, "x\\")),
        ("a\n!", IgnoreError::Empty { line: 2 }),
        ("!  ", IgnoreError::Empty { line: 1 }),
    ];
    for (text, error) in table {
        assert_eq!(Ignore::parse(text), Err(error), "{text:?}");
    }
}

#[test]
fn the_file_beside_the_containerfile_comes_first() {
    let found = candidates(Path::new("/f/Containerfile"), Path::new("/c"));
    let found: Vec<_> = found
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    assert_eq!(
        found,
        [
            "/f/Containerfile.containerignore",
            "/f/Containerfile.dockerignore",
            "/c/.containerignore",
            "/c/.dockerignore"
        ]
    );
}

#[test]
fn many_stars_cost_no_more_than_pattern_times_path() {
    let ignore = Ignore::parse(&"**/*a".repeat(50)).unwrap();
    assert!(!ignore.is_excluded(&"b/".repeat(200)));
}

#[test]
fn patterns_of_no_file_are_taken_as_they_are() {
    let ignore = Ignore::of(["#a", " b ", "", "/c", "d", "!d/e"]).unwrap();
    for (path, excluded) in [
        ("#a", true),
        ("b", true),
        ("c", false),
        ("d/f", true),
        ("d/e", false),
    ] {
        assert_eq!(ignore.is_excluded(path), excluded, "{path}");
    }
    assert!(Ignore::of(["a", "["]).is_err());
}
