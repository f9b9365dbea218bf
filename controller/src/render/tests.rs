use base64::Engine as _;
use serde_json::{Value, json};

use super::*;
use crate::api::machine_os_config::OsContainerfile;
use crate::fixtures;

fn with_user(content: &str) -> BuildInputs {
    let mut inputs = fixtures::inputs();
    inputs.containerfile = Some(OsContainerfile {
        content: content.to_owned(),
        ..OsContainerfile::default()
    });
    inputs
}

fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn the_containerfile_is_ours_and_then_the_administrators_verbatim() {
    let plain = render(&with_user("FROM configs AS final\nRUN  true # kept")).unwrap();
    golden("plain.Containerfile", &plain.containerfile);
    assert_eq!(
        plain.containerfile.lines().nth(plain.user_line_offset),
        Some("FROM configs AS final")
    );
    let mut inputs = with_user("RUN true\n");
    inputs.extensions_image = Some("quay.io/org/extensions:v1".parse().unwrap());
    inputs.machine_config.spec.extensions =
        Some(vec!["usbguard".to_owned(), "kerberos".to_owned()]);
    inputs.machine_config.spec.kernel_type = Some("realtime".to_owned());
    let extended = render(&inputs).unwrap();
    golden("extended.Containerfile", &extended.containerfile);
}

#[test]
fn a_byte_order_mark_is_left_out_and_another_escape_is_named() {
    let rendered = render(&with_user("\u{feff}FROM configs\n")).unwrap();
    assert!(!rendered.containerfile.contains('\u{feff}'));
    let error = render(&with_user("# escape=`\nFROM configs\nRUN a `\n b\n")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.containerFile of MachineOSConfig worker, line 1: # escape= can't be used in a cluster, since the text follows a part with backslashes; end its lines with \\ instead"
    );
}

#[test]
fn without_a_containerfile_the_result_is_the_stage_configs() {
    let rendered = render(&fixtures::inputs()).unwrap();
    assert_eq!(
        rendered.containerfile.lines().count(),
        rendered.user_line_offset
    );
    let file = parse(&rendered.containerfile, "Containerfile").unwrap();
    assert_eq!(file.stages.last().unwrap().name.as_deref(), Some("configs"));
}

#[test]
fn a_chain_of_stages_must_end_in_configs() {
    for good in [
        "FROM configs\n",
        "FROM Configs AS a\nFROM quay.io/x/y AS b\nFROM a\nCOPY --from=b / /\n",
        "RUN true\n",
        "# nothing\n",
    ] {
        render(&with_user(good)).unwrap();
    }
    let error = render(&with_user(
        "\nFROM configs AS a\nFROM quay.io/x/alpine AS b\nFROM b\n",
    ))
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "spec.containerFile of MachineOSConfig worker, line 4: the last stage starts from \"quay.io/x/alpine\", so its image would lack the base operating system and the pool's configuration; start it with FROM configs"
    );
}

#[test]
fn what_does_not_parse_is_told_in_the_administrators_own_lines() {
    let error = render(&with_user("FROM configs\nRUM true\n")).unwrap_err();
    assert_eq!(error.class(), Class::CONTENT);
    assert!(
        error
            .to_string()
            .contains("line 2, column 1: unknown instruction RUM"),
        "{error}"
    );
}

#[test]
fn unknown_extensions_and_kernels_are_named() {
    let mut inputs = fixtures::inputs();
    inputs.machine_config.spec.extensions =
        Some(vec!["x".to_owned(), "ipsec".to_owned(), "y".to_owned()]);
    assert_eq!(
        render(&inputs).unwrap_err().to_string(),
        "MachineConfig rendered-worker-0, spec.extensions: there are no extensions x, y; there are ipsec, kerberos, kernel-devel, sandboxed-containers, sysstat, two-node-ha, usbguard"
    );
    let mut inputs = fixtures::inputs();
    inputs.machine_config.spec.kernel_type = Some("lowlatency".to_owned());
    assert_eq!(
        render(&inputs).unwrap_err().to_string(),
        "MachineConfig rendered-worker-0, spec.kernelType: \"lowlatency\" is none of default, realtime, 64k-pages"
    );
    inputs.machine_config.spec.kernel_type = Some("64k-pages".to_owned());
    inputs.containerfile = Some(fixtures::containerfile(ContainerfileArch::Amd64));
    assert_eq!(
        render(&inputs).unwrap_err().to_string(),
        "MachineConfig rendered-worker-0, spec.kernelType: 64k-pages exists for ARM64 only, and the Containerfile is for AMD64"
    );
}

#[test]
fn the_packed_machine_config_unpacks_to_the_whole_object() {
    let rendered = render(&fixtures::inputs()).unwrap();
    let compressed = BASE64_STANDARD
        .decode(rendered.packed_machine_config)
        .unwrap();
    let unpacked: Value =
        serde_json::from_reader(flate2::read::GzDecoder::new(&compressed[..])).unwrap();
    assert_eq!(unpacked["kind"], "MachineConfig");
    assert_eq!(
        unpacked["spec"]["config"],
        json!({"ignition": {"version": "3.4.0"}})
    );
    assert_eq!(unpacked["spec"]["kernelArguments"], json!([]));
}
