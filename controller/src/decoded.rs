//! What if an object isn't what its type says?
//!
//! Then it is set aside with what can be told of it, so that neither a list nor a watch ends with it, and nobody takes it for one that isn't there. Types
//! of ours take what has a sensible default (see [`api`](crate::api)); this is for the rest: a field of another type, which a CRD of another version or
//! none has let in.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use kube::api::ApiResource;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::api::MachineConfigPool;
use crate::api::lenient::conditions;

/// An object as the apiserver gives it.
#[derive(Clone, Debug)]
pub enum Decoded<K> {
    /// As its type says.
    Whole(K),
    /// Not so.
    Undecodable(Box<Undecodable>),
}

/// What can be told of an object that isn't what its type says.
#[derive(Clone, Debug)]
pub struct Undecodable {
    /// Its kind.
    pub resource: ApiResource,
    /// Without managed fields.
    pub metadata: ObjectMeta,
    /// Of its status; none if these can't be read either.
    pub conditions: Option<Vec<Condition>>,
    /// Path of the field that is wrong; empty if it isn't one alone.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl Undecodable {
    fn new<K>(document: &Value, why: &serde_json::Error) -> Self
    where
        K: Resource + DeserializeOwned,
        K::DynamicType: Default,
    {
        let found = document.get("metadata").unwrap_or(&Value::Null);
        let text = |key: &str| found.get(key).and_then(Value::as_str).map(str::to_owned);
        let mut metadata = ObjectMeta::deserialize(found).unwrap_or_else(|_| ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        });
        metadata.managed_fields = None;
        let of_status = document.pointer("/status/conditions");
        Self {
            resource: ApiResource::erase::<K>(&K::DynamicType::default()),
            metadata,
            conditions: conditions(of_status.unwrap_or(&Value::Null))
                .ok()
                .map(Option::unwrap_or_default),
            field: culprit::<K>(document),
            why: why.to_string(),
        }
    }

    /// metadata.name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Which object that is, what is wrong with it, and what to do.
    #[must_use]
    pub fn told(&self) -> String {
        let kind = &self.resource.kind;
        let (place, remedy) = match self.field.as_str() {
            "" => (String::new(), "mend it"),
            field => (format!("{field}: "), "change or remove that field"),
        };
        // a pool names none
        let images = match *kind == MachineConfigPool::kind(&()) {
            true => "",
            false => ", and no image is deleted",
        };
        format!(
            "{kind} {} can't be read ({place}{}): {remedy}; until then nothing is done with it{images}",
            self.name(),
            self.why
        )
    }

    /// Whether this says of the same object what `other` says.
    #[must_use]
    pub fn is_told_by(&self, other: &Self) -> bool {
        let of = |one: &Self| (one.metadata.uid.clone(), one.metadata.generation);
        of(self) == of(other) && self.field == other.field && self.why == other.why
    }
}

impl<K> Decoded<K>
where
    K: Resource + DeserializeOwned,
    K::DynamicType: Default,
{
    fn of(document: &Value) -> Self {
        match K::deserialize(document) {
            Ok(object) => Decoded::Whole(object),
            Err(why) => Decoded::Undecodable(Box::new(Undecodable::new::<K>(document, &why))),
        }
    }
}

impl<'de, K> Deserialize<'de> for Decoded<K>
where
    K: Resource + DeserializeOwned,
    K::DynamicType: Default,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::of(&Value::deserialize(deserializer)?))
    }
}

impl<K: Resource> Resource for Decoded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        K::metadata_api()
    }

    fn kind(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dynamic)
    }

    fn group(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dynamic)
    }

    fn version(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dynamic)
    }

    fn plural(dynamic: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        match self {
            Decoded::Whole(object) => object.meta(),
            Decoded::Undecodable(one) => &one.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Decoded::Whole(object) => object.meta_mut(),
            Decoded::Undecodable(one) => &mut one.metadata,
        }
    }
}

/// The deepest field of spec, status or metadata without which `document` would be a `K`; empty if there is none.
fn culprit<K: DeserializeOwned>(document: &Value) -> String {
    let tops = ["/spec", "/status", "/metadata"];
    let found = tops.iter().find_map(|top| {
        let mut pointer = (*top).to_owned();
        while let Some(deeper) = culprit_in::<K>(document, &pointer) {
            pointer = deeper;
        }
        (pointer != *top).then_some(pointer)
    });
    let mut path = String::new();
    for part in found.iter().flat_map(|found| found.split('/').skip(1)) {
        if part.bytes().all(|byte| byte.is_ascii_digit()) {
            path.push_str(&format!("[{part}]"));
        } else {
            let point = if path.is_empty() { "" } else { "." };
            path.push_str(&format!(
                "{point}{}",
                part.replace("~1", "/").replace("~0", "~")
            ));
        }
    }
    path
}

/// The part of what `pointer` names without which `document` would be a `K`, as a pointer to it.
fn culprit_in<K: DeserializeOwned>(document: &Value, pointer: &str) -> Option<String> {
    let keys: Vec<String> = match document.pointer(pointer)? {
        Value::Object(fields) => fields.keys().cloned().collect(),
        Value::Array(items) => (0..items.len()).map(|n| n.to_string()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Vec::new(),
    };
    let is_it = |key: &String| {
        let mut without = document.clone();
        match without.pointer_mut(pointer) {
            Some(Value::Object(fields)) => drop(fields.remove(key)),
            Some(Value::Array(items)) => drop(key.parse().map(|n: usize| items.remove(n))),
            _ => return false,
        }
        K::deserialize(without).is_ok()
    };
    let key = keys.iter().find(|key| is_it(key))?;
    Some(format!(
        "{pointer}/{}",
        key.replace('~', "~0").replace('/', "~1")
    ))
}

#[cfg(test)]
mod tests {
    use kube::api::{ObjectList, WatchEvent};
    use serde_json::json;

    use super::*;
    use crate::api::{MachineConfig, MachineConfigPool, MachineOSConfig};
    use crate::fixtures;

    fn wrong(change: impl Fn(&mut Value)) -> Value {
        let mut document = serde_json::to_value(fixtures::os_config()).unwrap();
        change(&mut document);
        document
    }

    fn undecodable<K>(document: Value) -> Undecodable
    where
        K: Resource + DeserializeOwned,
        K::DynamicType: Default,
    {
        match serde_json::from_value(document).unwrap() {
            Decoded::<K>::Undecodable(one) => *one,
            Decoded::Whole(_) => panic!("decoded"),
        }
    }

    #[test]
    fn one_that_can_not_be_read_is_told_with_its_field_and_ends_no_list() {
        let rows: [(&str, Value); 4] = [
            (
                "spec.containerFile[0].content",
                wrong(|it| it["spec"]["containerFile"] = json!([{"content": {"a": "b"}}])),
            ),
            (
                "spec.machineConfigPool",
                wrong(|it| it["spec"]["machineConfigPool"] = json!("worker")),
            ),
            (
                "status.observedGeneration",
                wrong(|it| it["status"] = json!({"observedGeneration": "one"})),
            ),
            ("", wrong(|it| it["spec"] = json!(7))),
        ];
        for (field, document) in rows {
            let one = undecodable::<MachineOSConfig>(document.clone());
            assert_eq!(one.field, field, "{}", one.why);
            assert_eq!(one.name(), "worker");
            let told = one.told();
            assert!(
                told.starts_with("MachineOSConfig worker can't be read"),
                "{told}"
            );
            assert!(told.contains(field), "{told}");
            let list = json!({
                "apiVersion": "machineconfiguration.openshift.io/v1",
                "kind": "MachineOSConfigList",
                "metadata": {"resourceVersion": "7"},
                "items": [document, wrong(|_| {})],
            });
            let list: ObjectList<Decoded<MachineOSConfig>> = serde_json::from_value(list).unwrap();
            let are_whole = list
                .items
                .iter()
                .map(|one| matches!(one, Decoded::Whole(_)));
            assert_eq!(are_whole.collect::<Vec<_>>(), [false, true]);
            let event = json!({"type": "MODIFIED", "object": document});
            let event: WatchEvent<Decoded<MachineOSConfig>> =
                serde_json::from_str(&event.to_string()).unwrap();
            assert!(matches!(
                event,
                WatchEvent::Modified(Decoded::Undecodable(_))
            ));
        }
    }

    #[test]
    fn other_kinds_name_theirs() {
        let mut machine_config = serde_json::to_value(fixtures::machine_config()).unwrap();
        machine_config["spec"]["extensions"] = json!(["usbguard", 1]);
        let one = undecodable::<MachineConfig>(machine_config);
        assert_eq!(
            (one.resource.kind.as_str(), one.field.as_str()),
            ("MachineConfig", "spec.extensions[1]")
        );
        let mut pool = serde_json::to_value(fixtures::pool()).unwrap();
        pool["status"] = json!({"conditions": [{"type": "Updated", "status": true}]});
        let one = undecodable::<MachineConfigPool>(pool);
        assert_eq!(
            one.told(),
            "MachineConfigPool worker can't be read (status.conditions[0].status: invalid type: boolean `true`, expected a string): change or remove that field; until then nothing is done with it"
        );
    }

    #[test]
    fn what_else_is_known_of_it_is_kept_and_news_is_told_from_what_was_told() {
        let one = |generation: i64, content: i64| {
            undecodable::<MachineOSConfig>(wrong(|it| {
                it["metadata"]["generation"] = json!(generation);
                it["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
                it["spec"]["containerFile"] = json!([{"content": content}]);
                it["status"] = json!({"conditions": [{"type": "Seeded", "status": "True"}]});
            }))
        };
        let first = one(1, 7);
        assert_eq!(first.metadata.uid.as_deref(), Some("config-uid"));
        assert_eq!(first.metadata.managed_fields, None);
        let conditions = first.conditions.as_ref().unwrap();
        assert_eq!(conditions[0].type_, "Seeded");
        for (other, is_told) in [(one(1, 7), true), (one(2, 7), false), (one(1, 8), false)] {
            assert_eq!(other.is_told_by(&first), is_told, "{other:?}");
        }
        let no_conditions = wrong(|it| it["status"] = json!({"conditions": {"a": "b"}}));
        let one = undecodable::<MachineOSConfig>(no_conditions);
        assert_eq!(
            (one.field.as_str(), one.conditions),
            ("status.conditions", None)
        );
        let no_metadata = wrong(|it| it["metadata"]["labels"] = json!(["a"]));
        let one = undecodable::<MachineOSConfig>(no_metadata);
        assert_eq!(
            (one.name(), one.field.as_str()),
            ("worker", "metadata.labels")
        );
    }
}
