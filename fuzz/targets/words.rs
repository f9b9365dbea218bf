//! Any word and any pattern: expanded and split, matched as an ignore file matches. Nothing may panic or take long.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_builder::containerfile::Word;
use strata_builder::containerfile::words::{expand, expand_text, split};
use strata_builder::ignore::Ignore;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let word = Word(text.clone().into_owned());
    let lookup = |name: &str| match name {
        "a" => Some("one".to_owned()),
        "b" => Some("two words/and * [more]".to_owned()),
        "e" => Some(String::new()),
        "long" => Some("ab/".repeat(200)),
        _ => None,
    };
    for escape in ['\\', '`'] {
        let whole = expand(&word, escape, &lookup);
        let parts = split(&word, escape, &lookup);
        assert_eq!(whole.is_ok(), parts.is_ok());
        if let (Ok(whole), Ok(parts)) = (whole, parts) {
            assert!(parts.iter().map(String::len).sum::<usize>() <= whole.len());
        }
        let _ = expand_text(&text, escape, &lookup);
    }
    if let Ok(ignore) = Ignore::parse(&text) {
        for path in ["a", "a/b", "dir/sub/file.txt", ".hidden/x", "long/".repeat(40).as_str()] {
            let _ = (ignore.is_excluded(path), ignore.may_include_below(path));
        }
    }
});
