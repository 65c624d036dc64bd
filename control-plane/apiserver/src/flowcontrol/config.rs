//! The objects as what requests are sorted by. Mandatory objects that are missing are supplied, so every request has a
//! level.

use super::level::{Level, Response};
use super::metrics::SchemaStats;
use super::rules::{Asked, Rule};
use crate::object::{get, int_at, list_at, meta, str_at};
use http::HeaderValue;
use serde_json::{Value, json};
use std::sync::Arc;

/// A level takes at most this part of its nominal limit for one request.
const MAX_SEATS_PART: f64 = 0.15;

/// A priority level with its configuration.
pub(super) struct LevelConfig {
    pub(super) name: String,
    pub(super) uid: HeaderValue,
    pub(super) level: Arc<Level>,
    pub(super) exempt: bool,
    /// Requests wait in queues by their flow.
    pub(super) queues: bool,
    pub(super) nominal: usize,
    pub(super) min: usize,
    pub(super) max: usize,
    /// Most seats for one request; 0 when the level does not say.
    pub(super) max_seats: u64,
}

/// How a schema tells flows apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distinguisher {
    None,
    User,
    Namespace,
}

/// A FlowSchema.
pub(super) struct Schema {
    pub(super) name: String,
    pub(super) uid: HeaderValue,
    pub(super) level: Arc<LevelConfig>,
    pub(super) stats: Arc<SchemaStats>,
    precedence: i64,
    distinguisher: Distinguisher,
    rules: Vec<Rule>,
}

/// All objects at one time.
pub(super) struct Config {
    /// In the order of matching.
    pub(super) schemas: Vec<Arc<Schema>>,
    pub(super) levels: Vec<Arc<LevelConfig>>,
    catch_all: Option<Arc<Schema>>,
}

fn header(object: &Value) -> HeaderValue {
    HeaderValue::from_str(meta(object, "uid")).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The mandatory levels, as upstream's bootstrap has them.
fn mandatory_levels() -> [Value; 2] {
    [
        json!({"metadata": {"name": "exempt"}, "spec": {"type": "Exempt",
            "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}}),
        json!({"metadata": {"name": "catch-all"}, "spec": {"type": "Limited",
            "limited": {"nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"}}}}),
    ]
}

/// The mandatory schemas.
fn mandatory_schemas() -> [Value; 2] {
    let rules = |subjects: Value| {
        json!([{"subjects": subjects,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true,
                "namespaces": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}])
    };
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    [
        json!({"metadata": {"name": "exempt"}, "spec": {"priorityLevelConfiguration": {"name": "exempt"},
            "matchingPrecedence": 1, "rules": rules(json!([group(crate::auth::MASTERS)]))}}),
        json!({"metadata": {"name": "catch-all"}, "spec": {"priorityLevelConfiguration": {"name": "catch-all"},
            "matchingPrecedence": 10_000, "distinguisherMethod": {"type": "ByUser"},
            "rules": rules(json!([group(crate::auth::UNAUTHENTICATED), group(crate::auth::AUTHENTICATED)]))}}),
    ]
}

/// What of a level's object decides about its limits.
struct Shares<'a> {
    object: &'a Value,
    exempt: bool,
    shares: i64,
}

fn shares(object: &Value) -> Shares<'_> {
    // A level is exempt by its name; validation keeps type and name together.
    let exempt = meta(object, "name") == "exempt";
    let part = if exempt { "exempt" } else { "limited" };
    let default = if exempt { 0 } else { 30 };
    let shares = int_at(object, &["spec", part, "nominalConcurrencyShares"]).unwrap_or(default).max(0);
    Shares { object, exempt, shares }
}

/// How a level answers when it is full.
fn response(object: &Value, exempt: bool) -> Response {
    if exempt {
        return Response::Exempt;
    }
    let limit = ["spec", "limited", "limitResponse"];
    let queuing = get(object, &limit).and_then(|l| l.get("queuing")).filter(|q| q.is_object());
    match queuing {
        Some(queuing) if str_at(object, &["spec", "limited", "limitResponse", "type"]) == "Queue" => {
            let number = |field: &str, default: i64, most: i64| {
                usize::try_from(int_at(queuing, &[field]).unwrap_or(default).clamp(1, most)).unwrap_or(1)
            };
            let queues = number("queues", 64, 1 << 14);
            let hand = number("handSize", 8, 15).min(queues);
            Response::Queue { queues, hand, length: number("queueLengthLimit", 50, 1 << 20) }
        }
        _ => Response::Reject,
    }
}

fn level(all: &Shares<'_>, seats: usize, sum: f64, old: Option<&Config>) -> LevelConfig {
    let Shares { object, exempt, shares } = *all;
    let name = meta(object, "name").to_owned();
    let part = if exempt { "exempt" } else { "limited" };
    let percent =
        |field: &str| int_at(object, &["spec", part, field]).map(|p| p.clamp(0, 1 << 20) as f64 / 100.0);
    let nominal = (seats as f64 * shares as f64 / sum).ceil() as usize;
    let lendable = (nominal as f64 * percent("lendablePercent").unwrap_or(0.0).min(1.0)).round() as usize;
    let borrowing = match percent("borrowingLimitPercent").filter(|_| !exempt) {
        Some(part) => (nominal as f64 * part).round() as usize,
        None => seats,
    };
    let response = response(object, exempt);
    let max_seats = match response {
        Response::Queue { hand, .. } => {
            let most = ((nominal as f64) * MAX_SEATS_PART).ceil() as u64;
            most.min((nominal / hand) as u64).max(1)
        }
        _ => 0,
    };
    let known = old.and_then(|old| old.levels.iter().find(|known| known.name == name));
    let level = match known {
        Some(known) => known.level.clone(),
        None => Level::new(nominal - lendable / 2),
    };
    level.configure(response);
    LevelConfig {
        uid: header(object),
        level,
        exempt,
        queues: matches!(response, Response::Queue { .. }),
        nominal,
        min: nominal - lendable,
        max: nominal + borrowing,
        max_seats,
        name,
    }
}

impl Config {
    /// From the objects; levels and counts of the old configuration go on.
    pub(super) fn digest(seats: usize, schemas: &[Value], levels: &[Value], old: Option<&Config>) -> Self {
        let with = |given: &[Value], mandatory: [Value; 2]| -> Vec<Value> {
            let missing =
                mandatory.into_iter().filter(|m| given.iter().all(|g| meta(g, "name") != meta(m, "name")));
            given.iter().cloned().chain(missing).collect()
        };
        let levels = with(levels, mandatory_levels());
        let all: Vec<Shares<'_>> = levels.iter().map(shares).collect();
        let sum = all.iter().map(|s| s.shares).sum::<i64>().max(1) as f64;
        let levels: Vec<Arc<LevelConfig>> =
            all.iter().map(|shares| Arc::new(level(shares, seats, sum, old))).collect();
        let mut out: Vec<Arc<Schema>> = with(schemas, mandatory_schemas())
            .iter()
            // A schema of a level that does not exist is no schema.
            .filter_map(|object| Schema::parse(object, &levels, old).map(Arc::new))
            .collect();
        out.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let catch_all = out.iter().find(|schema| schema.name == "catch-all").or(out.last()).cloned();
        Config { schemas: out, levels, catch_all }
    }

    /// The schema of a request: the first that matches, else the one for all.
    pub(super) fn schema(&self, asked: &Asked<'_>) -> Arc<Schema> {
        let matching = self.schemas.iter().find(|schema| schema.rules.iter().any(|rule| rule.matches(asked)));
        match matching.or(self.catch_all.as_ref()) {
            Some(schema) => schema.clone(),
            None => unreachable!("the mandatory schemas are supplied"),
        }
    }
}

impl Schema {
    fn parse(object: &Value, levels: &[Arc<LevelConfig>], old: Option<&Config>) -> Option<Self> {
        let wanted = str_at(object, &["spec", "priorityLevelConfiguration", "name"]);
        let level = levels.iter().find(|level| level.name == wanted)?.clone();
        let name = meta(object, "name").to_owned();
        let known = old.and_then(|old| old.schemas.iter().find(|s| s.name == name && s.level.name == wanted));
        Some(Schema {
            uid: header(object),
            stats: known.map(|known| known.stats.clone()).unwrap_or_default(),
            level,
            precedence: int_at(object, &["spec", "matchingPrecedence"]).unwrap_or(1000),
            distinguisher: match str_at(object, &["spec", "distinguisherMethod", "type"]) {
                "ByUser" => Distinguisher::User,
                "ByNamespace" => Distinguisher::Namespace,
                _ => Distinguisher::None,
            },
            rules: list_at(object, &["spec", "rules"]).iter().map(Rule::parse).collect(),
            name,
        })
    }

    /// What tells the request's flow from others.
    pub(super) fn distinguisher<'a>(&self, asked: &Asked<'a>) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::User => &asked.user.name,
            Distinguisher::Namespace => &asked.info.namespace,
        }
    }
}
