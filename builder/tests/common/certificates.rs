//! Certificates as registries and their clients have them.

use std::path::Path;
use std::process::Command;

/// Makes `name.crt` and `name.key` in the folder, signed by `by`, or by itself.
pub fn certify(folder: &Path, name: &str, by: Option<&str>) {
    let mut command = Command::new("openssl");
    command.current_dir(folder).args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
    ]);
    command.arg(format!("/CN={name}"));
    command.args([
        "-out",
        &format!("{name}.crt"),
        "-keyout",
        &format!("{name}.key"),
    ]);
    if let Some(by) = by {
        command.args(["-CA", &format!("{by}.crt"), "-CAkey", &format!("{by}.key")]);
        command.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        command.args(["-addext", "extendedKeyUsage=serverAuth,clientAuth"]);
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
