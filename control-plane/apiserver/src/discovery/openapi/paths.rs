//! Paths and operations, made from the rows of the registry.

use super::custom;
use super::descriptions::Descriptions;
use super::facts::Facts;
use super::schema::Schemas;
use crate::gvk::GroupVersionKind;
use crate::registry::{Resource, Subresource, SubresourceKind};
use crate::schema;
use serde_json::{Map, Value, json};

const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const OBJECT: &[&str] = &[JSON, YAML, PROTOBUF];
const STREAM: &[&str] = &[
    JSON,
    YAML,
    PROTOBUF,
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
/// What is spoken about the objects of definitions.
const CUSTOM: &[&str] = &[JSON, YAML];
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];
const LOG: &[&str] = &["text/plain", JSON, YAML, PROTOBUF];
const ANY: &[&str] = &["*/*"];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

type Option2 = (&'static str, &'static str);

const WRITE: &[Option2] = &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const DELETE: &[Option2] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];
const SELECT: &[Option2] = &[
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("shardSelector", "string"),
    ("timeoutSeconds", "integer"),
];
const READ: &[Option2] = &[("resourceVersion", "string")];
const WATCH: &[Option2] = &[("allowWatchBookmarks", "boolean"), ("watch", "boolean")];

/// A parameter; ordered as documents list them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Parameter {
    name: &'static str,
    place: &'static str,
    kind: &'static str,
}

impl Parameter {
    fn query((name, kind): Option2) -> Self {
        Parameter { name, place: "query", kind }
    }

    fn path(name: &'static str) -> Self {
        Parameter { name, place: "path", kind: "string" }
    }

    /// The parameter of paths to objects of a kind.
    fn value(&self, kind: &str, texts: &Descriptions) -> Value {
        let mut out = json!({"name": self.name, "in": self.place,
            "schema": {"type": self.kind, "uniqueItems": true}});
        if self.place == "path" {
            out["required"] = true.into();
        }
        let text = match (self.place, self.name) {
            ("path", "name") => Some(format!("name of the {kind}")),
            ("path", "namespace") => {
                Some("object name and auth scope, such as for teams and projects".into())
            }
            ("path", _) => Some("path to the resource".into()),
            // Options of deletions are an object, too, whose fields are described.
            _ => texts.of_field(DELETE_OPTIONS, self.name).map(str::to_owned),
        };
        if let Some(text) = text {
            out["description"] = text.into();
        }
        out
    }
}

/// What one method does at a path.
struct Operation {
    method: &'static str,
    id: String,
    /// What it does, in words.
    text: String,
    action: Option<&'static str>,
    kind: Option<Value>,
    parameters: Vec<Parameter>,
    body: Option<Value>,
    /// Codes with their answers.
    answers: Vec<(u16, Value)>,
}

fn content(types: &[&str], schema: &Value) -> Value {
    types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

fn answer(types: &[&str], schema: &Value) -> Value {
    json!({"description": "OK", "content": content(types, schema)})
}

/// An object under several success codes.
fn answers(codes: &[u16], types: &[&str], schema: &Value) -> Vec<(u16, Value)> {
    codes
        .iter()
        .map(|code| {
            let mut value = answer(types, schema);
            value["description"] = match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            }
            .into();
            (*code, value)
        })
        .collect()
}

/// The path item of these operations: parameters that all of them have belong to the path.
fn item(tag: &str, operations: Vec<Operation>, texts: &Descriptions) -> Value {
    let kind =
        operations.iter().find_map(|o| o.kind.as_ref()?["kind"].as_str()).unwrap_or_default().to_owned();
    let mut shared: Vec<Parameter> = match operations.split_first() {
        Some((first, rest)) => first
            .parameters
            .iter()
            .filter(|p| rest.iter().all(|o| o.parameters.contains(p)))
            .cloned()
            .collect(),
        None => Vec::new(),
    };
    shared.sort();
    let values = |list: &[Parameter]| -> Value { list.iter().map(|p| p.value(&kind, texts)).collect() };
    let mut out = Map::new();
    for mut operation in operations {
        operation.parameters.retain(|p| !shared.contains(p));
        operation.parameters.sort();
        let mut responses: Map<String, Value> =
            operation.answers.into_iter().map(|(code, value)| (code.to_string(), value)).collect();
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let mut value = json!({"tags": [tag], "description": operation.text, "operationId": operation.id,
            "responses": responses});
        if !operation.parameters.is_empty() {
            value["parameters"] = values(&operation.parameters);
        }
        if let Some(body) = operation.body {
            value["requestBody"] = body;
        }
        if let Some(action) = operation.action {
            value["x-kubernetes-action"] = action.into();
        }
        if let Some(kind) = operation.kind {
            value["x-kubernetes-group-version-kind"] = kind;
        }
        out.insert(operation.method.to_owned(), value);
    }
    if !shared.is_empty() {
        out.insert("parameters".to_owned(), values(&shared));
    }
    out.into()
}

/// First letters of the parts of a group's name that identify it: `rbac.authorization.k8s.io` is `RbacAuthorization`.
fn group_title(group: &str) -> String {
    if group.is_empty() {
        return "Core".to_owned();
    }
    group.trim_end_matches(".k8s.io").split('.').map(title).collect()
}

fn title(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

fn tag(group: &str) -> String {
    let title = group_title(group);
    let mut letters = title.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// Paths of one group version, as they are made from its rows.
pub(super) struct Paths<'a> {
    group: &'a str,
    version: &'a str,
    root: String,
    schemas: &'a mut Schemas,
    /// Takes a path and its item.
    sink: Sink<'a>,
}

/// Takes paths with their items, one at a time: together they are large.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&str, &Value);

impl<'a> Paths<'a> {
    pub(super) fn new(group: &'a str, version: &'a str, schemas: &'a mut Schemas, sink: Sink<'a>) -> Self {
        let root = format!("/{}", super::root_of(group, version));
        Paths { group, version, root, schemas, sink }
    }

    fn tag(&self) -> String {
        format!("{}_{}", tag(self.group), self.version)
    }

    fn push(&mut self, path: String, operations: Vec<Operation>) {
        if !operations.is_empty() {
            let item = item(&self.tag(), operations, self.schemas.texts());
            (self.sink)(&path, &item);
        }
    }

    /// `listCoreV1NamespacedPod`.
    fn id(&self, verb: &str, rest: &str) -> String {
        format!("{verb}{}{}{rest}", group_title(self.group), title(self.version))
    }

    /// The group version's own path, which lists its resources.
    pub(super) fn add_root(&mut self) {
        let list = self.schemas.named("meta.v1.APIResourceList");
        let text = "get available resources";
        let operation = get(self.id("get", "APIResources"), text, OBJECT, &list);
        self.push(format!("{}/", self.root), vec![operation]);
    }

    /// All paths of a row.
    pub(super) fn add(&mut self, row: &Resource) {
        let of = match (&row.custom, schema::by_gvk(&row.gvk())) {
            (Some(version), _) => Of::custom(self, row, version),
            (None, Some(own)) => Of::new(self, row, own),
            (None, None) => return,
        };
        self.add_collection(row, &of);
        self.add_single(row, &of);
        for sub in &row.subresources {
            self.add_subresource(row, sub, &of);
        }
        if row.verbs.contains(&"watch") && !of.is_custom {
            self.add_watches(row, &of);
        }
    }

    fn add_collection(&mut self, row: &Resource, of: &Of) {
        let verb = |verb: &str| row.verbs.contains(&verb);
        let mut operations = Vec::new();
        if verb("list") {
            let id = self.id("list", &format!("{}{}", of.scope, row.kind()));
            operations.push(of.list("get", id, "list", &of.list, false));
        }
        if verb("create") {
            let id = self.id("create", &format!("{}{}", of.scope, row.kind()));
            operations.push(of.write("post", id, "post", &of.object, of.parameters(false, WRITE)));
        }
        if verb("deletecollection") {
            let id = self.id("delete", &format!("Collection{}{}", of.scope, row.kind()));
            let own = if of.is_custom { WATCH } else { DELETE };
            let mut parameters = of.parameters(false, own);
            parameters.extend(SELECT.iter().copied().map(Parameter::query));
            operations.push(Operation {
                method: "delete",
                id,
                text: of.text("deletecollection", "delete"),
                action: Some("deletecollection"),
                kind: Some(of.kind.clone()),
                parameters,
                body: (!of.is_custom).then(|| of.delete_body(self.schemas)),
                answers: answers(&[200], of.objects(), &self.schemas.named("meta.v1.Status")),
            });
        }
        self.push(format!("{}/{}", of.place, row.plural()), operations);
        if row.namespaced && verb("list") {
            let id = self.id("list", &format!("{}ForAllNamespaces", row.kind()));
            let operation =
                Operation { parameters: everywhere(), ..of.list("get", id, "list", &of.list, false) };
            self.push(format!("{}/{}", self.root, row.plural()), vec![operation]);
        }
    }

    fn add_single(&mut self, row: &Resource, of: &Of) {
        let verb = |verb: &str| row.verbs.contains(&verb);
        let name = format!("{}{}", of.scope, row.kind());
        let [read, replace, patch, delete] =
            ["read", "replace", "patch", "delete"].map(|verb| self.id(verb, &name));
        let mut operations = Vec::new();
        if verb("get") {
            operations.push(of.read(read, &of.object));
        }
        if verb("update") {
            operations.push(of.write("put", replace, "put", &of.object, of.parameters(true, WRITE)));
        }
        if verb("patch") {
            operations.push(of.patch(patch, &of.object, self.schemas));
        }
        if verb("delete") {
            let status = self.schemas.named("meta.v1.Status");
            let answer = if returns_object(row) { &of.object } else { &status };
            operations.push(Operation {
                method: "delete",
                id: delete,
                text: of.text("delete", "delete"),
                action: Some("delete"),
                kind: Some(of.kind.clone()),
                parameters: of.parameters(true, DELETE),
                body: Some(of.delete_body(self.schemas)),
                answers: answers(&[200, 202], of.objects(), answer),
            });
        }
        self.push(format!("{}/{}/{{name}}", of.place, row.plural()), operations);
    }

    fn add_watches(&mut self, row: &Resource, of: &Of) {
        let event = self.schemas.named("meta.v1.WatchEvent");
        let place = of.place.replacen(&self.root, &format!("{}/watch", self.root), 1);
        let id = |rest: String| self.id("watch", &rest);
        let list = of.list("get", id(format!("{}{}List", of.scope, row.kind())), "watchlist", &event, false);
        let one = of.list("get", id(format!("{}{}", of.scope, row.kind())), "watch", &event, true);
        let all = id(format!("{}ListForAllNamespaces", row.kind()));
        self.push(format!("{place}/{}", row.plural()), vec![list]);
        self.push(format!("{place}/{}/{{name}}", row.plural()), vec![one]);
        if row.namespaced {
            let operation =
                Operation { parameters: everywhere(), ..of.list("get", all, "watchlist", &event, false) };
            self.push(format!("{}/watch/{}", self.root, row.plural()), vec![operation]);
        }
    }

    fn add_subresource(&mut self, row: &Resource, sub: &Subresource, of: &Of) {
        let path = format!("{}/{}/{{name}}/{}", of.place, row.plural(), sub.name);
        if sub.does == SubresourceKind::Connect && sub.name != "log" {
            self.add_connect(row, sub, of, path);
            return;
        }
        let own = sub.kind_of(row);
        let (group, version, kind) = own;
        // Every operation on the objects of a definition is one of their kind.
        let named = if of.is_custom { of.kind.clone() } else { kind_value(own) };
        let of = &Of { kind: named, sub: Some(sub.name), ..of.clone() };
        let name = format!("{}{}{}", of.scope, row.kind(), title(sub.name));
        let [read, replace, patch, create] =
            ["read", "replace", "patch", "create"].map(|verb| self.id(verb, &name));
        let mut operations = Vec::new();
        if sub.name == "log" {
            let parameters = of.parameters(true, Facts::get().options("PodLogOptions"));
            let read = of.read(read, &of.object);
            let answers = answers(&[200], LOG, &json!({"type": "string"}));
            self.push(path, vec![Operation { parameters, answers, ..read }]);
            return;
        }
        let object = match schema::by_gvk(&GroupVersionKind::new(group, version, kind)) {
            Some(own) => self.schemas.object(own),
            None if of.is_custom => of.object.clone(),
            None => return,
        };
        if sub.verbs.contains(&"get") {
            operations.push(of.read(read, &object));
        }
        if sub.verbs.contains(&"update") {
            operations.push(of.write("put", replace, "put", &object, of.parameters(true, WRITE)));
        }
        if sub.verbs.contains(&"patch") {
            operations.push(of.patch(patch, &object, self.schemas));
        }
        if sub.verbs.contains(&"create") {
            operations.push(of.write("post", create, "post", &object, of.parameters(true, WRITE)));
        }
        self.push(path, operations);
    }

    /// Connections: any method leads to what stands behind. Proxies take a path, too.
    fn add_connect(&mut self, row: &Resource, sub: &Subresource, of: &Of, path: String) {
        let methods: &[&'static str] = if sub.verbs.contains(&"delete") {
            &["get", "put", "post", "delete", "options", "head", "patch"]
        } else {
            &["get", "post"]
        };
        let of = &Of { sub: Some(sub.name), ..of.clone() };
        let options = Facts::get().options(sub.kind_of(row).2);
        let forms: &[bool] = if sub.name == "proxy" { &[false, true] } else { &[false] };
        for with_path in forms {
            let suffix = if *with_path { "WithPath" } else { "" };
            let operations = methods
                .iter()
                .map(|method| {
                    let verb = title(method);
                    let name = format!("{verb}{}{}{}{suffix}", of.scope, row.kind(), title(sub.name));
                    let mut parameters = of.places(true);
                    parameters.extend(options.iter().copied().map(Parameter::query));
                    if *with_path {
                        parameters.push(Parameter::path("path"));
                    }
                    Operation {
                        method,
                        id: self.id("connect", &name),
                        text: of.text("connect", method),
                        action: Some("connect"),
                        kind: Some(kind_value(sub.kind_of(row))),
                        parameters,
                        body: None,
                        answers: answers(&[200], ANY, &json!({"type": "string"})),
                    }
                })
                .collect();
            let path = if *with_path { format!("{path}/{{path}}") } else { path.clone() };
            self.push(path, operations);
        }
    }
}

/// The article of a kind with a space behind it; kinds that are plurals have none.
fn article(kind: &str) -> &'static str {
    if kind.ends_with('s') && !kind.ends_with("ss") {
        ""
    } else if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an "
    } else {
        "a "
    }
}

/// Parameters of lists and watches over all namespaces.
fn everywhere() -> Vec<Parameter> {
    let mut out = vec![Parameter::query(("pretty", "string"))];
    out.extend(SELECT.iter().chain(WATCH).copied().map(Parameter::query));
    out
}

fn kind_value((group, version, kind): (&str, &str, &str)) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// Deletions of some kinds answer with the object, those of others with a Status. Namespaces answer with themselves
/// while they end, which the document does not say.
fn returns_object(row: &Resource) -> bool {
    row.strategy.delete_returns_object && row.kind() != "Namespace" && row.custom.is_none()
}

fn get(id: String, text: &str, types: &[&str], schema: &Value) -> Operation {
    Operation {
        method: "get",
        id,
        text: text.to_owned(),
        action: None,
        kind: None,
        parameters: Vec::new(),
        body: None,
        answers: answers(&[200], types, schema),
    }
}

/// What the operations of a row share.
#[derive(Clone)]
struct Of {
    /// `Namespaced` or nothing.
    scope: &'static str,
    namespaced: bool,
    /// Path that collections are below.
    place: String,
    kind: Value,
    /// Kind of the row, whatever a subresource's is.
    noun: Box<str>,
    /// The subresource, if it is one.
    sub: Option<&'static str>,
    watched: bool,
    /// Of a definition: other media types, no watches of their own, options of reads.
    is_custom: bool,
    object: Value,
    list: Value,
}

impl Of {
    fn new(paths: &mut Paths<'_>, row: &Resource, own: &'static schema::TypeSchema) -> Self {
        let list = if row.verbs.contains(&"list") {
            paths.schemas.named(&format!("{}List", own.name))
        } else {
            Value::Null
        };
        let root = &paths.root;
        Of {
            scope: if row.namespaced { "Namespaced" } else { "" },
            namespaced: row.namespaced,
            place: if row.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() },
            kind: kind_value((row.group(), row.version(), row.kind())),
            noun: row.kind().into(),
            sub: None,
            watched: row.verbs.contains(&"watch"),
            is_custom: false,
            object: paths.schemas.object(own),
            list,
        }
    }

    fn custom(paths: &mut Paths<'_>, row: &Resource, version: &crate::custom::Version) -> Self {
        let (object, list) = custom::add(row, version, paths.schemas);
        let root = &paths.root;
        Of {
            scope: if row.namespaced { "Namespaced" } else { "" },
            namespaced: row.namespaced,
            place: if row.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() },
            kind: kind_value((row.group(), row.version(), row.kind())),
            noun: row.kind().into(),
            sub: None,
            watched: false,
            is_custom: true,
            object,
            list,
        }
    }

    /// Media types of answers with an object.
    fn objects(&self) -> &'static [&'static str] {
        if self.is_custom { CUSTOM } else { OBJECT }
    }

    /// Media types of bodies.
    fn bodies(&self) -> &'static [&'static str] {
        if self.is_custom { CUSTOM } else { ANY }
    }

    fn delete_body(&self, schemas: &mut Schemas) -> Value {
        json!({"content": content(self.bodies(), &schemas.named("meta.v1.DeleteOptions"))})
    }

    /// What an operation does, in words.
    fn text(&self, action: &str, method: &str) -> String {
        let kind = &*self.noun;
        let sub = |preposition: &str| self.sub.map(|sub| format!("{sub} {preposition}")).unwrap_or_default();
        let article = article(kind);
        let old = "deprecated: use the 'watch' parameter with a list operation instead";
        match action {
            "get" => format!("read {}the specified {kind}", sub("of ")),
            "put" => format!("replace {}the specified {kind}", sub("of ")),
            "patch" => format!("partially update {}the specified {kind}", sub("of ")),
            "post" => format!("create {}{article}{kind}", sub("of ")),
            "delete" => format!("delete {}{article}{kind}", sub("of ")),
            "deletecollection" => format!("delete collection of {kind}"),
            "list" if self.watched => format!("list or watch objects of kind {kind}"),
            "list" => format!("list objects of kind {kind}"),
            "watchlist" => format!("watch individual changes to a list of {kind}. {old}."),
            "watch" => format!(
                "watch changes to an object of kind {kind}. {old}, filtered to a single item with the 'fieldSelector' parameter."
            ),
            _ => format!("connect {} requests to {}{kind}", method.to_uppercase(), sub("of ")),
        }
    }

    /// Parameters in the path.
    fn places(&self, named: bool) -> Vec<Parameter> {
        let mut out = Vec::new();
        if named {
            out.push(Parameter::path("name"));
        }
        if self.namespaced {
            out.push(Parameter::path("namespace"));
        }
        out
    }

    fn parameters(&self, named: bool, options: &[Option2]) -> Vec<Parameter> {
        let mut out = self.places(named);
        out.push(Parameter::query(("pretty", "string")));
        out.extend(options.iter().copied().map(Parameter::query));
        out
    }

    fn list(
        &self,
        method: &'static str,
        id: String,
        action: &'static str,
        schema: &Value,
        named: bool,
    ) -> Operation {
        let mut parameters = self.parameters(named, SELECT);
        parameters.extend(WATCH.iter().copied().map(Parameter::query));
        Operation {
            method,
            id,
            text: self.text(action, method),
            action: Some(action),
            kind: Some(self.kind.clone()),
            parameters,
            body: None,
            answers: answers(&[200], if self.is_custom { CUSTOM } else { STREAM }, schema),
        }
    }

    fn read(&self, id: String, schema: &Value) -> Operation {
        Operation {
            action: Some("get"),
            kind: Some(self.kind.clone()),
            parameters: self.parameters(true, if self.is_custom { READ } else { &[] }),
            ..get(id, &self.text("get", "get"), self.objects(), schema)
        }
    }

    fn write(
        &self,
        method: &'static str,
        id: String,
        action: &'static str,
        schema: &Value,
        parameters: Vec<Parameter>,
    ) -> Operation {
        let codes: &[u16] = if method == "post" { &[200, 201, 202] } else { &[200, 201] };
        Operation {
            method,
            id,
            text: self.text(action, method),
            action: Some(action),
            kind: Some(self.kind.clone()),
            parameters,
            body: Some(json!({"content": content(self.bodies(), schema), "required": true})),
            answers: answers(codes, self.objects(), schema),
        }
    }

    fn patch(&self, id: String, schema: &Value, schemas: &mut Schemas) -> Operation {
        let mut parameters = self.parameters(true, WRITE);
        parameters.push(Parameter::query(("force", "boolean")));
        let patch = schemas.named("meta.v1.Patch");
        let bodies = if self.is_custom { CUSTOM_PATCHES } else { PATCHES };
        // Applying makes objects; of those of definitions the document does not say it.
        let codes: &[u16] = if self.is_custom { &[200] } else { &[200, 201] };
        Operation {
            method: "patch",
            id,
            text: self.text("patch", "patch"),
            action: Some("patch"),
            kind: Some(self.kind.clone()),
            parameters,
            body: Some(json!({"content": content(bodies, &patch), "required": true})),
            answers: answers(codes, self.objects(), schema),
        }
    }
}

/// A path outside of group versions: discovery roots, the version, the keys of service accounts.
pub(super) fn plain(path: &str, schemas: &mut Schemas, sink: Sink<'_>) {
    let (tag, id, text, types, schema): (String, String, &str, &[&str], Value) = match path {
        "api" => {
            let list = schemas.named("meta.v1.APIVersions");
            ("core".into(), "getCoreAPIVersions".into(), "get available API versions", OBJECT, list)
        }
        "apis" => {
            let list = schemas.named("meta.v1.APIGroupList");
            ("apis".into(), "getAPIVersions".into(), "get available API versions", OBJECT, list)
        }
        "version" => {
            let text = "get the version information for this server";
            ("version".into(), "getCodeVersion".into(), text, &[JSON], schemas.server_version())
        }
        "openid/v1/jwks" => (
            "openid".into(),
            "getServiceAccountIssuerOpenIDKeyset".into(),
            "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)",
            &["application/jwk-set+json"],
            json!({"type": "string"}),
        ),
        ".well-known/openid-configuration" => (
            "WellKnown".into(),
            "getServiceAccountIssuerOpenIDConfiguration".into(),
            "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'",
            &[JSON],
            json!({"type": "string"}),
        ),
        _ => {
            let group = path.trim_start_matches("apis/");
            let id = format!("get{}APIGroup", group_title(group));
            (self::tag(group), id, "get information of a group", OBJECT, schemas.named("meta.v1.APIGroup"))
        }
    };
    let operation = get(id, text, types, &schema);
    sink(&format!("/{path}/"), &item(&tag, vec![operation], schemas.texts()));
}
