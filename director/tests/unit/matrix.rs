//! Each operation by each role, on own, foreign and absent objects, as a table beside the docs.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use director::{api::operations, roles::ROLES};
use serde_json::{Value, json};

use super::{Answered, Server};

/// The file. `CAUSEWAY_WRITE=1` writes it anew.
const FILE: &str = "../docs/director-roles.txt";

/// One object of each kind: provider's ones, and a tenant's, by path of the collection.
pub async fn fill(server: &Server) {
    let pool = json!({ "ranges": ["192.0.2.10-192.0.2.99"] });
    server.create("/v1/address-pools", "public", pool).await;
    for (name, address) in [("gw1", "203.0.113.1"), ("gw2", "203.0.113.2")] {
        let gateway = json!({ "addresses": [address] });
        server.create("/v1/gateways", name, gateway).await;
    }
    let pool = json!({ "gateways": ["gw2"] });
    server.create("/v1/gateway-pools", "gold", pool).await;
    for tenant in ["acme", "globex"] {
        let of = |kind: &str| format!("/v1/tenants/{tenant}/{kind}");
        let network = json!({ "spec": { "prefixes": ["10.1.0.0/24"], "gateways": ["10.1.0.1"] } });
        let path = of("networks/web-1");
        let done = server
            .call(&server.admin, "PUT", &path, &[], Some(&network))
            .await;
        done.expect(200);
        let address = json!({ "pool": "public" });
        let address = server.create(&of("addresses"), "a1", address).await;
        let mapping = json!({ "production": "VM Network", "replica": "web-1" });
        server.create(&of("mappings"), "lan", mapping).await;
        let policy = json!({ "from": "web-1", "to": "web-2" });
        server.create(&of("policies"), "web", policy).await;
        let rule = json!({ "public_ip": address["status"]["address"], "public_port": "443",
            "internal_ip": "10.1.0.10" });
        server.create(&of("rules"), "https", rule).await;
        let plan = json!({ "networks": [{ "name": "web-1" }], "vms": [{ "name": "db",
            "addresses": ["10.1.0.10"], "group": "first",
            "health": { "probe": "tcp", "port": 5432 } }],
            "rules": ["https"] });
        server.create(&of("plans"), "all", plan).await;
    }
}

/// Name of an existing object in each collection.
pub const OBJECTS: [(&str, &str); 15] = [
    ("hosts", "h1"),
    ("vlan-pools", "pool"),
    ("address-pools", "public"),
    ("hardware-plans", "small"),
    ("gateways", "gw1"),
    ("gateway-pools", "gold"),
    ("tenants", "acme"),
    ("subscriptions", "web"),
    ("networks", "web-1"),
    ("appliances", "h1"),
    ("addresses", "a1"),
    ("mappings", "lan"),
    ("policies", "web"),
    ("rules", "https"),
    ("plans", "all"),
];

/// Which object an operation is tried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Own,
    Foreign,
    Absent,
}

/// Requests of an operation: own, foreign and absent ones where it names an object or a tenant.
struct Try {
    which: Which,
    path: String,
    body: Option<Value>,
}

fn name_in(collection: &str) -> &'static str {
    let found = OBJECTS.iter().find(|(plural, _)| *plural == collection);
    found
        .unwrap_or_else(|| panic!("no object of {collection}"))
        .1
}

/// The tries of an operation on objects. Changes are dry runs.
fn tries(id: &str, path: &str, specs: &BTreeMap<String, Value>) -> Vec<Try> {
    let verb = id.rsplit('.').next().expect("a verb");
    let collection = path.split("/{name}").next().expect("a collection");
    let collection = collection.rsplit('/').next().expect("a collection");
    let is_of_tenant = path.contains("{tenant}");
    let is_tenant = collection == "tenants";
    let kind = id.split('.').next().expect("a kind");
    let body = match verb {
        "create" => Some(json!({ "name": "brand-new", "spec": specs[kind] })),
        "replace" => Some(json!({ "spec": specs[kind] })),
        _ => None,
    };
    let query = match verb {
        "create" | "replace" | "remove" => "?dry_run=true",
        _ => "",
    };
    let mut tries = Vec::new();
    for which in [Which::Own, Which::Foreign, Which::Absent] {
        let has_name = path.contains("{name}");
        let tenant = match which {
            Which::Own => "acme",
            Which::Foreign => "globex",
            // The tenant itself is absent where the operation names nothing else.
            Which::Absent if has_name => "acme",
            Which::Absent => "nowhere",
        };
        let name = match (which, is_tenant) {
            (Which::Absent, _) => "nothing",
            (Which::Foreign, true) => "globex",
            (Which::Foreign, false) if collection == "gateways" => "gw2",
            _ => name_in(collection),
        };
        let is_distinct = is_of_tenant || has_name || which == Which::Own;
        // The provider's objects belong to no tenant; only a gateway's own one differs.
        let is_foreign = which != Which::Foreign
            || is_of_tenant
            || (has_name && (is_tenant || collection == "gateways"));
        if is_distinct && is_foreign {
            let path = path.replace("{tenant}", tenant).replace("{name}", name);
            tries.push(Try {
                which,
                path: format!("{path}{query}"),
                body: body.clone(),
            });
        }
    }
    tries
}

/// The tries of the other operations. None of them changes what a later one needs.
fn other_tries(id: &str, path: &str, ids: &BTreeMap<&str, String>) -> Vec<Try> {
    let one = |path: &str, body: Option<Value>| Try {
        which: Which::Own,
        path: path.to_owned(),
        body,
    };
    let on = |which, name: &str, body: Option<Value>| Try {
        which,
        path: path.replace("{name}", name).replace("{id}", name),
        body,
    };
    // A password that is too short is refused after the role is checked.
    let user = |tenant: &str| {
        json!({ "name": "n", "role": "tenant-operator", "tenant": tenant,
        "password": "short" })
    };
    match id {
        "session.create" => vec![one(path, Some(json!({ "user": "x", "password": "y" })))],
        // From a revision that there is not yet, which is refused after the role is checked.
        "watch" => [
            (Which::Own, "acme"),
            (Which::Foreign, "globex"),
            (Which::Absent, "nowhere"),
        ]
        .map(|(which, tenant)| Try {
            which,
            path: format!("/v1/watch?kind=network&tenant={tenant}&from=999999999"),
            body: None,
        })
        .into(),
        "status" => [
            (Which::Own, "acme"),
            (Which::Foreign, "globex"),
            (Which::Absent, "nowhere"),
        ]
        .map(|(which, tenant)| Try {
            which,
            path: format!("{path}?tenant={tenant}"),
            body: None,
        })
        .into(),
        "user.create" => [(Which::Own, "acme"), (Which::Foreign, "globex")]
            .map(|(which, tenant)| on(which, "", Some(user(tenant))))
            .into(),
        "user.password.replace" => [
            (Which::Own, "victim-acme"),
            (Which::Foreign, "victim-globex"),
            (Which::Absent, "nothing"),
        ]
        .map(|(which, name)| on(which, name, Some(json!({ "password": "short" }))))
        .into(),
        "self.password.replace" => vec![one(path, Some(json!({ "password": "short" })))],
        "user.remove" | "user.totp.remove" => [
            (Which::Own, "victim-acme"),
            (Which::Foreign, "victim-globex"),
            (Which::Absent, "nothing"),
        ]
        .map(|(which, name)| on(which, name, None))
        .into(),
        "user.token.list" | "user.token.remove" => [
            (Which::Own, "victim-acme"),
            (Which::Foreign, "victim-globex"),
            (Which::Absent, "nothing"),
        ]
        .map(|(which, name)| Try {
            which,
            path: path.replace("{name}", name).replace("{id}", "0"),
            body: None,
        })
        .into(),
        // Of a person, which is refused after the role is checked.
        "user.token.create" => [
            (Which::Own, "victim-acme"),
            (Which::Foreign, "victim-globex"),
            (Which::Absent, "nothing"),
        ]
        .map(|(which, name)| on(which, name, Some(json!({ "hours": 1 }))))
        .into(),
        "token.create" => vec![one(path, Some(json!({ "hours": 1 })))],
        "token.remove" => vec![
            on(Which::Foreign, &ids["admin"], None),
            on(Which::Absent, "nothing", None),
        ],
        // No agents are served here, which is refused after the role is checked.
        _ if id.contains(".enrolment.") || id.contains(".identity.") => {
            let name = if id.starts_with("gateway.") {
                "gw1"
            } else {
                "h1"
            };
            let foreign = if id.starts_with("gateway.") {
                "gw2"
            } else {
                "h1"
            };
            let body = id.ends_with(".create").then(|| json!({ "hours": 1 }));
            let query = if id.ends_with(".get") {
                ""
            } else {
                "?dry_run=true"
            };
            [
                (Which::Own, "acme", name),
                (Which::Foreign, "globex", foreign),
                (Which::Absent, "acme", "nothing"),
            ]
            .map(|(which, tenant, name)| Try {
                which,
                path: path.replace("{tenant}", tenant).replace("{name}", name) + query,
                body: body.clone(),
            })
            .into()
        }
        "self.totp.confirm" => vec![one(path, Some(json!({ "code": "1" })))],
        _ => vec![one(path, None)],
    }
}

/// The outcome in the table. A refusal for a reason other than the role counts as access.
fn outcome(answer: &Answered, id: &str) -> String {
    match answer.status {
        200..=299 => "yes".to_owned(),
        400 | 409 | 410 | 422 | 429 | 507 => "yes".to_owned(),
        // The user is there, and has no such token.
        404 if id == "user.token.remove" && answer.text.contains("no such token") => {
            "yes".to_owned()
        }
        // This operation answers so to a wrong password.
        401 if id == "session.create" => "yes".to_owned(),
        status => status.to_string(),
    }
}

#[tokio::test]
async fn the_table_of_roles_is_what_the_server_does() {
    let server = Server::with_tenants().await;
    fill(&server).await;
    let admin = server.admin.clone();
    let mut specs = BTreeMap::new();
    let mut tokens = vec![("no token".to_owned(), String::new())];
    for role in ROLES {
        let name = serde_json::to_value(role).expect("a name");
        let name = name.as_str().expect("a text").to_owned();
        let tenant = role.is_of_tenant().then_some("acme");
        let token = match role.machine() {
            None => server.user(&format!("u-{name}"), &name, tenant).await,
            Some(kind) => {
                let object = if kind == "gateway" { "gw1" } else { "h1" };
                let user = format!("u-{name}");
                let mut body = json!({ "name": user, "role": name, "object": object });
                if let Some(tenant) = tenant {
                    body["tenant"] = tenant.into();
                }
                server.post(&admin, "/v1/users", body).await.expect(201);
                let path = format!("/v1/users/{user}/tokens");
                let made = server
                    .post(&admin, &path, json!({ "hours": 1 }))
                    .await
                    .expect(201);
                made.json()["secret"].as_str().expect("a secret").to_owned()
            }
        };
        tokens.push((name, token));
    }
    for (collection, name) in OBJECTS {
        let provider = format!("/v1/{collection}/{name}");
        let tenant = format!("/v1/tenants/acme/{collection}/{name}");
        let mut found = server.get(&admin, &provider).await;
        if found.status == 404 {
            found = server.get(&admin, &tenant).await;
        }
        let kind = director::api::operations()
            .into_iter()
            .find(|o| o.path.ends_with(&format!("/{collection}")) && o.id.ends_with(".list"))
            .expect("a kind");
        let kind = kind.id.trim_end_matches(".list").to_owned();
        specs.insert(kind, found.expect(200).json()["spec"].clone());
    }
    let ids = server.get(&admin, "/v1/tokens").await.json();
    let ids = BTreeMap::from([(
        "admin",
        ids["items"][0]["id"].as_str().expect("an id").to_owned(),
    )]);

    let mut table = String::from(
        "Access by role, as the director answers. Made by director/tests/unit/matrix.rs.\n\n\
         Each cell is the outcome on an object of the user's own tenant (for a gateway: its own\n\
         object), on one of another tenant, and on an absent one: yes, 401, 403 or 404. The\n\
         provider's roles have no tenant of their own. - where there is no such case.\n\n",
    );
    let _ = write!(table, "{:<28}", "operation");
    for (role, _) in &tokens {
        let _ = write!(table, " {role:<17}");
    }
    table.push('\n');
    let mut count = 0;
    for operation in operations() {
        let is_object =
            specs.contains_key(operation.id.rsplit_once('.').map_or("", |(kind, _)| kind));
        let mut line = format!("{:<28}", operation.id);
        for (_, token) in &tokens {
            for (name, tenant) in [("victim-acme", "acme"), ("victim-globex", "globex")] {
                if !is_object && operation.id.starts_with("user.") {
                    let user = json!({ "name": name, "role": "tenant-operator", "tenant": tenant,
                        "password": "correct horse battery" });
                    // It is there unless the role before was allowed to remove it.
                    server.post(&admin, "/v1/users", user).await;
                }
            }
            let tries = match is_object {
                true => tries(&operation.id, &operation.path, &specs),
                false => other_tries(&operation.id, &operation.path, &ids),
            };
            let mut cell = BTreeMap::from([
                (Which::Own, "-".to_owned()),
                (Which::Foreign, "-".to_owned()),
                (Which::Absent, "-".to_owned()),
            ]);
            let method = operation.method.as_str();
            for request in tries {
                let body = request.body.as_ref();
                let answer = server.call(token, method, &request.path, &[], body).await;
                cell.insert(request.which, outcome(&answer, &operation.id));
                count += 1;
                let is_hidden = outcome(&answer, &operation.id) == "404";
                if request.which == Which::Foreign && is_hidden {
                    assert_as_absent(&server, token, method, &request, &answer).await;
                }
            }
            let cell: Vec<_> = cell.into_values().collect();
            let _ = write!(line, " {:<17}", cell.join("/"));
        }
        table += line.trim_end();
        table.push('\n');
    }
    assert!(count > 1500, "{count} requests");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
    if std::env::var_os("CAUSEWAY_WRITE").is_some() {
        std::fs::write(&path, &table).expect("the file");
    }
    let kept = std::fs::read_to_string(&path).expect("the file: write it by CAUSEWAY_WRITE=1");
    for (kept, found) in kept.lines().zip(table.lines()) {
        assert_eq!(
            kept, found,
            "access has changed: check it, and write the file anew"
        );
    }
    assert_eq!(kept.len(), table.len());
}

/// Fails unless a foreign object is answered as one that does not exist, byte for byte.
async fn assert_as_absent(
    server: &Server,
    token: &str,
    method: &str,
    request: &Try,
    foreign: &Answered,
) {
    let other = |text: &str| {
        text.replace("globex", "nohere")
            .replace("gw2", "gw9")
            .replace("victim-globex", "victim-nohere")
    };
    let path = other(&request.path);
    if path == request.path {
        return;
    }
    let body = request.body.clone();
    let absent = server.call(token, method, &path, &[], body.as_ref()).await;
    assert_eq!(other(&foreign.text), absent.text, "{method} {path}");
    assert_eq!(foreign.headers, absent.headers, "{method} {path}");
    assert_eq!(foreign.status, absent.status);
}
