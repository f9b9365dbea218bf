use super::*;

fn base() -> (Manifest, ImageConfig) {
    let config = ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        rootfs: RootFs {
            diff_ids: vec![Digest::of(b"tar")],
            ..RootFs::default()
        },
        ..ImageConfig::default()
    };
    let mut layer = Descriptor::new(LAYER_MEDIA_TYPE, Digest::of(b"gz"), 2);
    layer.other.insert(
        "annotations".to_owned(),
        serde_json::json!({"ostree.components": "base"}),
    );
    let manifest = Manifest {
        schema_version: 2,
        media_type: None,
        config: Descriptor::new(CONFIG_MEDIA_TYPE, Digest::of(b"{}"), 2),
        layers: vec![layer],
        annotations: BTreeMap::from([("ostree.commit".to_owned(), "abc".to_owned())]),
        other: BTreeMap::new(),
    };
    (manifest, config)
}

#[test]
fn base_layers_and_annotations_are_kept_and_new_layers_go_on_top() {
    let (manifest, config) = base();
    let mut image = Image::of_base(&manifest, config).unwrap();
    image.add_layer(
        Descriptor::new(LAYER_MEDIA_TYPE, Digest::of(b"new"), 3),
        Digest::of(b"newtar"),
    );
    let assembled = image.assemble("2026-11-24T00:00:00Z").unwrap();
    let pushed: Manifest = serde_json::from_slice(&assembled.manifest).unwrap();
    assert_eq!(
        serde_json::to_value(&pushed).unwrap(),
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_MEDIA_TYPE,
            "config": {
                "mediaType": CONFIG_MEDIA_TYPE,
                "digest": Digest::of(&assembled.config),
                "size": assembled.config.len(),
            },
            "layers": [
                {
                    "mediaType": LAYER_MEDIA_TYPE,
                    "digest": Digest::of(b"gz"),
                    "size": 2,
                    "annotations": {"ostree.components": "base"},
                },
                {"mediaType": LAYER_MEDIA_TYPE, "digest": Digest::of(b"new"), "size": 3},
            ],
            "annotations": {"ostree.commit": "abc"},
        })
    );
    let config: serde_json::Value = serde_json::from_slice(&assembled.config).unwrap();
    assert_eq!(
        config["rootfs"],
        serde_json::json!({"type": "layers", "diff_ids": [Digest::of(b"tar"), Digest::of(b"newtar")]})
    );
    assert_eq!(config["created"], "2026-11-24T00:00:00Z");
    assert_eq!(assembled.digest, Digest::of(&assembled.manifest));
    assert_eq!(assembled.size_bytes, 2 + 3 + assembled.config.len() as u64);
}

#[test]
fn dockers_layer_media_types_become_oci_ones_and_others_stay() {
    for (base_type, expected) in [
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            LAYER_MEDIA_TYPE,
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.oci.image.layer.v1.tar",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
    ] {
        let (mut manifest, config) = base();
        base_type.clone_into(&mut manifest.layers[0].media_type);
        let image = Image::of_base(&manifest, config).unwrap();
        assert_eq!(image.layers[0].media_type, expected);
    }
}

#[test]
fn a_manifest_and_a_configuration_of_different_images_are_refused() {
    let (mut manifest, config) = base();
    manifest.layers.clear();
    let error = Image::of_base(&manifest, config).unwrap_err();
    assert!(matches!(
        error,
        ImageError::LayerCount {
            layers: 0,
            diff_ids: 1
        }
    ));
    assert_eq!(error.class(), Class::CONTENT);
}
