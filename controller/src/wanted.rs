//! Which build does a MachineOSConfig want now?
//!
//! Pure. The answer depends on the config, its pool and the rendered MachineConfig that the pool wants; both
//! reconcilers ask here, so that they can't disagree.

use kube::ResourceExt as _;
use strata_builder::error::chain;

use crate::api::{MachineConfig, MachineConfigPool, MachineOSConfig};
use crate::inputs::{BuildInputs, OptionalMounts, Sources, build_name, check};

/// What a config wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// This build. Its MachineConfig may be a trimmed one.
    Build(Box<BuildInputs>),
    /// Nothing yet: what is missing, for a reader.
    Waiting(String),
    /// Nothing is begun until an object is changed. But a build of that content may be there, made by the incumbent, which judges otherwise.
    Invalid {
        /// Which object, and how.
        why: String,
        /// The name of such a build, if that can be told.
        name: Option<String>,
    },
}

impl Wanted {
    /// The name of the build with that content, if it can be told, whether one may be begun or not.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match self {
            Wanted::Build(inputs) => Some(inputs.name.as_str()),
            Wanted::Invalid { why: _, name } => name.as_deref(),
            Wanted::Waiting(_) => None,
        }
    }
}

/// What `os_config` wants, given its pool and the rendered MachineConfig that the pool names.
#[must_use]
pub fn wanted(
    os_config: &MachineOSConfig,
    pool: Option<&MachineConfigPool>,
    machine_config: Option<&MachineConfig>,
) -> Wanted {
    let invalid = |error| Wanted::Invalid {
        why: chain(&error),
        name: pool
            .zip(machine_config)
            .and_then(|(pool, machine_config)| build_name(pool, machine_config, os_config).ok())
            .map(|name| name.to_string()),
    };
    if let Err(error) = check(os_config) {
        return invalid(error);
    }
    let pool_name = &os_config.spec.machine_config_pool.name;
    let Some(pool) = pool else {
        return Wanted::Waiting(format!("MachineConfigPool {pool_name} does not exist"));
    };
    let Some(target) = pool.target_machine_config() else {
        return Wanted::Waiting(format!(
            "MachineConfigPool {pool_name} has no rendered MachineConfig yet (spec.configuration.name is empty)"
        ));
    };
    let Some(machine_config) = machine_config else {
        return Wanted::Waiting(format!(
            "MachineConfig {target}, which MachineConfigPool {pool_name} names in spec.configuration.name, does not exist"
        ));
    };
    let sources = Sources {
        pool,
        machine_config,
        os_config,
        controller_config: None,
        optional: OptionalMounts::default(),
    };
    match BuildInputs::new(sources) {
        Ok(inputs) => Wanted::Build(Box::new(inputs)),
        Err(error) => invalid(error),
    }
}

/// Why a pool's builds don't start: a condition other than that of builds is True.
#[must_use]
pub fn degraded(pool: &MachineConfigPool) -> Option<String> {
    const BLOCKING: [&str; 4] = [
        "NodeDegraded",
        "RenderDegraded",
        "PinnedImageSetsDegraded",
        "PoolSynchronizerDegraded",
    ];
    let conditions = pool.status.as_ref()?.conditions.as_deref()?;
    let found = conditions.iter().find(|condition| {
        condition.status == "True" && BLOCKING.contains(&condition.type_.as_str())
    })?;
    let message = found.message.as_deref().unwrap_or_default();
    Some(format!(
        "MachineConfigPool {} is degraded ({}): {message}",
        pool.name_any(),
        found.type_
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::foreign::{MachineConfigPoolStatus, PoolCondition};
    use crate::api::machine_os_config::ImageBuilderType;
    use crate::fixtures;

    #[test]
    fn what_is_missing_is_named_and_a_whole_set_gives_a_build() {
        let (os_config, pool, machine_config) = (
            fixtures::os_config(),
            fixtures::pool(),
            fixtures::machine_config(),
        );
        let mut empty = pool.clone();
        empty.spec.configuration = None;
        let waiting = |wanted: Wanted| match wanted {
            Wanted::Waiting(what) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            waiting(wanted(&os_config, None, None)),
            "MachineConfigPool worker does not exist"
        );
        assert!(
            waiting(wanted(&os_config, Some(&empty), None)).contains("spec.configuration.name")
        );
        assert!(
            waiting(wanted(&os_config, Some(&pool), None))
                .starts_with("MachineConfig rendered-worker-0,")
        );
        let whole = wanted(&os_config, Some(&pool), Some(&machine_config));
        assert_eq!(whole.name(), Some(fixtures::inputs().name.as_str()));
        // told also while its pool is awaited
        let mut other = os_config.clone();
        other.spec.image_builder.image_builder_type =
            ImageBuilderType::Other("PodImageBuilder".to_owned());
        assert!(matches!(
            wanted(&other, None, None),
            Wanted::Invalid { why, .. } if why.contains("spec.imageBuilder.imageBuilderType")
        ));
        let mut wrong = os_config;
        wrong.spec.rendered_image_push_spec = "quay.io/org/Repo:latest".to_owned();
        let named = build_name(&pool, &machine_config, &wrong).unwrap();
        assert!(matches!(
            wanted(&wrong, Some(&pool), Some(&machine_config)),
            Wanted::Invalid { why, name }
                if why.contains("spec.renderedImagePushSpec") && name == Some(named.to_string())
        ));
        let mut unnamed = machine_config;
        unnamed.metadata.annotations = None;
        assert!(matches!(
            wanted(&wrong, Some(&pool), Some(&unnamed)),
            Wanted::Invalid { why, name: None } if why.contains("annotation")
        ));
    }

    #[test]
    fn a_pool_is_blocked_by_every_trouble_but_that_of_builds() {
        for (type_, blocks) in [
            ("NodeDegraded", true),
            ("RenderDegraded", true),
            ("PinnedImageSetsDegraded", true),
            ("PoolSynchronizerDegraded", true),
            ("ImageBuildDegraded", false),
            ("Degraded", false),
        ] {
            for status in ["True", "False"] {
                let mut pool = fixtures::pool();
                pool.status = Some(MachineConfigPoolStatus {
                    conditions: Some(vec![PoolCondition {
                        type_: type_.to_owned(),
                        status: status.to_owned(),
                        ..PoolCondition::default()
                    }]),
                    ..MachineConfigPoolStatus::default()
                });
                assert_eq!(
                    degraded(&pool).is_some(),
                    blocks && status == "True",
                    "{type_}"
                );
            }
        }
    }
}
