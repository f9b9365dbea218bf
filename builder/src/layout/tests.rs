use super::*;

#[test]
fn a_location_is_a_folder_only_behind_oci() {
    let layout = |directory: &str, tag: Option<&str>| {
        Ok(Location::Layout {
            directory: directory.into(),
            tag: tag.map(str::to_owned),
        })
    };
    for (text, expected) in [
        ("oci:out", layout("out", None)),
        ("oci:/a/b:v1", layout("/a/b", Some("v1"))),
        ("oci:a:b/c", layout("a:b/c", None)),
        (
            "quay.io/oci:x",
            "quay.io/oci:x".parse().map(Location::Registry),
        ),
        (
            "oci:",
            Err(InvalidReference {
                text: "oci:".to_owned(),
                why: "behind oci: stands no folder",
            }),
        ),
    ] {
        assert_eq!(text.parse::<Location>(), expected, "{text}");
    }
}

#[test]
fn a_tag_names_the_manifest_put_last_and_untagged_ones_stay_reachable_by_digest() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let (one, two) = (br#"{"n":1}"#, br#"{"n":2}"#);
    layout.put_manifest(Some("v1"), "kind", one).unwrap();
    assert_eq!(layout.find(None).unwrap().digest, Digest::of(one));
    layout.put_manifest(Some("v1"), "kind", two).unwrap();
    layout.put_manifest(Some("v2"), "kind", one).unwrap();
    let reopened = Layout::open(folder.path()).unwrap();
    assert_eq!(reopened.find(Some("v1")).unwrap().digest, Digest::of(two));
    assert_eq!(reopened.find(Some("v2")).unwrap().digest, Digest::of(one));
    assert_eq!(reopened.blob(Digest::of(two)).unwrap(), two);
    assert_eq!(
        reopened.find(None).unwrap_err().to_string(),
        format!(
            "{} has no image without a tag; it has v1, v2",
            folder.path().display()
        )
    );
}

#[test]
fn a_blob_with_another_digest_gets_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path()).unwrap();
    let mut upload = layout.upload().unwrap();
    upload.write(b"ab").unwrap();
    upload.write(b"c").unwrap();
    let wanted = Digest::of(b"other");
    assert!(matches!(
        upload.finish(wanted),
        Err(LayoutError::WrongDigest { got, .. }) if got == Digest::of(b"abc")
    ));
    assert_eq!(
        fs::read_dir(folder.path().join("blobs/sha256"))
            .unwrap()
            .count(),
        0
    );

    let mut upload = layout.upload().unwrap();
    upload.write(b"abc").unwrap();
    upload.finish(Digest::of(b"abc")).unwrap();
    assert!(layout.has_blob(Digest::of(b"abc")));
}
