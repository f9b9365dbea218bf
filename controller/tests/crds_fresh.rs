//! Are the CRDs in deploy/ what the types say?

use std::path::Path;

use strata_controller::api;

#[test]
fn the_files_are_what_crdgen_prints() -> Result<(), Box<dyn std::error::Error>> {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for (folder, files) in [
        ("crds", api::crd_files(api::own_crds())?),
        ("crds-foreign", api::crd_files(api::foreign_crds())?),
    ] {
        for (name, wanted) in files {
            let path = deploy.join(folder).join(name);
            let found = std::fs::read_to_string(&path)?;
            assert_eq!(
                found,
                wanted,
                "{}: run `cargo crds --out deploy/crds`",
                path.display()
            );
        }
    }
    Ok(())
}
