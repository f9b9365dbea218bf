use super::*;
use serde_json::json;

#[test]
fn scalars_that_look_like_something_else_are_quoted() {
    let rows: &str = include_str!("../../tests/data/yaml-scalars.json");
    let rows: Vec<(String, Option<String>)> = serde_json::from_str(rows).unwrap();
    assert!(rows.len() > 100);
    for (text, wanted) in rows {
        let document = json!({"containerFile": [{"content": text}]});
        assert_eq!(to_yaml(&document).ok(), wanted, "{text:?}");
    }
}

#[test]
fn numbers_are_refused() {
    assert_eq!(to_yaml(&json!({"a": 1})), Err(YamlError::Unsupported));
}

#[test]
fn what_can_not_be_written_has_a_place() {
    let document = json!({
        "a": "b", "containerFile": [{"content": "fine"}, {"content": "FROM x\nRUN \u{7f}\n"}],
    });
    let error = to_yaml(&document).unwrap_err();
    assert_eq!(
        place(&document, error).as_deref(),
        Some(".containerFile[1].content, line 2")
    );
    assert_eq!(place(&document, YamlError::Control(0x80)), None);
}
