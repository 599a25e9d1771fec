//! Enrolment tokens and identities of machines: gateways and appliances.

use axum::http::{Method, StatusCode};
use control::{Appliance, Difference, Gateway, Scope, Tenant, Transaction, gateways_of};
use identity::{EnrolmentToken, Secret};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::objects::{REASON, found, place};
use crate::{
    agents::difference,
    api::{
        answer::{Answer, body},
        authorize::authorize,
        dry_run::{DRY_RUN, changed, with_dry_run},
        operation::{Answering, Operation, Success},
        request::Call,
        schemas::schema,
        served::Served,
    },
    change::{Planned, Wanted},
    live::Live,
    machines::{
        AgentListener, ENROLMENTS, Enrolment, IDENTITIES, MachineIdentity, conflict, must_be,
    },
    problem::Problem,
    roles::Verb,
};

/// Longest lifetime of an enrolment token, hours.
const MAX_HOURS: u32 = 168;
/// Most service addresses of a token.
const MAX_SERVICE_ADDRESSES: usize = 16;
/// Enrolment tokens of all machines that have expired, and that a new one forgets at most.
const MAX_FORGOTTEN: usize = 16;
/// Time for which the use of an expired token is still told as such.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// An enrolment token as it is asked for.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEnrolment {
    /// Lifetime, hours, 1 to 168 (7 days).
    #[schema(minimum = 1, maximum = 168)]
    hours: u32,
}

/// A new enrolment token, which is shown this once.
#[derive(Debug, Serialize, ToSchema)]
struct ShownEnrolment {
    /// The token: all that the machine needs.
    token: String,
    enrolment: Enrolment,
}

/// The identity of a machine, and its tokens.
#[derive(Debug, Serialize, ToSchema)]
struct MachineState {
    /// Its identity; omitted before it has enrolled, and after its revocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<MachineIdentity>,
    /// Its enrolment tokens, by time of creation.
    enrolments: Vec<Enrolment>,
    /// The connection of its agent; omitted while there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<Connection>,
}

/// The connection of an agent.
#[derive(Debug, Serialize, ToSchema)]
struct Connection {
    /// Address and port that it comes from: those of the machine, or of a gateway that relays it.
    address: String,
    /// Its begin.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Version of the daemon.
    version: String,
    /// Whether the machine is ready; omitted before its first report.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready: Option<bool>,
    /// Why it is not ready.
    reasons: Vec<String>,
}

pub(super) fn register(all: &mut Vec<Operation>) {
    register_kind::<Gateway>(all);
    register_kind::<Appliance>(all);
}

fn register_kind<K: Served>(all: &mut Vec<Operation>) {
    let one = match K::SCOPE {
        Scope::Provider => format!("/v1/{}/{{name}}", K::PLURAL),
        Scope::Tenant => format!("/v1/tenants/{{tenant}}/{}/{{name}}", K::PLURAL),
    };
    let kind = K::KIND;
    all.push(Operation {
        description: "An earlier token that is unused ends. A machine that uses the token takes \
                      the place of the one that enrolled earlier, whose certificate ends.",
        query: vec![DRY_RUN],
        headers: vec![REASON],
        body: Some(schema::<NewEnrolment>()),
        success: with_dry_run(StatusCode::CREATED, Some(schema::<ShownEnrolment>())),
        ..Operation::new(
            format!("{kind}.enrolment.create"),
            Method::POST,
            format!("{one}/enrolments"),
            format!("Create a token by which {} enrols.", K::ONE),
            |call| Box::pin(create::<K>(call)) as Answering,
        )
    });
    all.push(Operation {
        success: vec![Success::json(
            StatusCode::OK,
            Some(schema::<MachineState>()),
        )],
        ..Operation::new(
            format!("{kind}.identity.get"),
            Method::GET,
            format!("{one}/identity"),
            format!("Get the identity and the enrolment tokens of {}.", K::ONE),
            |call| Box::pin(get::<K>(call)) as Answering,
        )
    });
    all.push(Operation {
        description: "Its stream is closed at once, and its unused enrolment token ends.",
        query: vec![DRY_RUN],
        headers: vec![REASON],
        success: with_dry_run(StatusCode::NO_CONTENT, None),
        ..Operation::new(
            format!("{kind}.identity.revoke"),
            Method::DELETE,
            format!("{one}/identity"),
            format!("Revoke the identity of {}.", K::ONE),
            |call| Box::pin(revoke::<K>(call)) as Answering,
        )
    });
}

/// The key of the object that the path names, which exists.
fn key<K: Served>(call: &Call, live: &Live) -> Result<String, Problem> {
    let (tenant, name) = place::<K>(call);
    Ok(found::<K>(live, tenant, name.unwrap_or_default())?.key())
}

async fn create<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, name) = place::<K>(&call);
    authorize(actor, K::GROUP, Verb::Write, tenant)?;
    let new: NewEnrolment = call.read()?;
    if !(1..=MAX_HOURS).contains(&new.hours) {
        let text = format!("hours: write 1 to {MAX_HOURS}");
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "invalid",
            text,
        ));
    }
    let dry_run = call.query.flag("dry_run")?;
    let environment = &*call.director.environment;
    let mut random = [0; 16];
    let filled = environment.fill(&mut random);
    filled.map_err(|error| Problem::internal(&error))?;
    let secret = Secret::new(random);
    let hash = secret.hash();
    let wanted = Wanted {
        actor,
        subject: call.subject(
            &format!("{}.enrolment", K::KIND),
            tenant,
            name.unwrap_or_default(),
        )?,
        dry_run,
        status: StatusCode::CREATED.as_u16(),
        idempotency: None,
    };
    let token = std::sync::Mutex::new(String::new());
    let applied = call.director.change(wanted, |live, origin| {
        let machine = key::<K>(&call, live)?;
        let listener = call.director.agent_listener.get();
        let listener = listener.ok_or_else(no_listener)?;
        let text = written(listener, live, tenant, &machine, &secret)?;
        *token
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = text;
        let expires = origin.now + SignedDuration::from_hours(i64::from(new.hours));
        let enrolment = Enrolment {
            id: hash[..16].to_owned(),
            machine: machine.clone(),
            by: actor.user.clone(),
            created: origin.now,
            expires,
            used: None,
            key: None,
        };
        let mut transaction = Transaction::default();
        let mut differences = vec![of_enrolment(&call, None, Some(&enrolment))];
        let is_old = |other: &Enrolment| origin.now.duration_since(other.expires) > REMEMBERED;
        let old = live.enrolments.iter();
        let old = old
            .filter(|(_, (other, _))| is_old(other))
            .take(MAX_FORGOTTEN);
        let unused = live.enrolments.iter();
        let unused =
            unused.filter(|(_, (other, _))| other.machine == machine && other.used.is_none());
        for (hash, (_, revision)) in old.chain(unused.clone()) {
            let stored = format!("{ENROLMENTS}{hash}");
            must_be(&mut transaction, &stored, Some(*revision));
            transaction.delete.insert(stored);
        }
        differences.extend(unused.map(|(_, (other, _))| of_enrolment(&call, Some(other), None)));
        let body = body(&enrolment)?;
        transaction.create(format!("{ENROLMENTS}{hash}"), body.to_string());
        Ok(Planned {
            transaction,
            body,
            warnings: Vec::new(),
            differences,
        })
    });
    let applied = applied.await?;
    if dry_run {
        return changed(applied, true);
    }
    let token = token
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let answer = json!({ "token": token, "enrolment": applied.body });
    Ok(Answer::json(StatusCode::CREATED, &answer))
}

/// The difference of an enrolment token in the audit.
fn of_enrolment(call: &Call, before: Option<&Enrolment>, after: Option<&Enrolment>) -> Difference {
    let shown = |enrolment: &Enrolment| {
        let Enrolment {
            machine, expires, ..
        } = enrolment;
        json!({ "machine": machine, "expires": expires })
    };
    let either = after.or(before);
    let id = either.map_or("", |enrolment| enrolment.id.as_str());
    let is_of_tenant = call.parameters.len() > 1;
    let tenant = call.parameters.first().filter(|_| is_of_tenant);
    let (before, after) = (before.map(shown), after.map(shown));
    let tenant = tenant.map(String::as_str);
    Difference::between("enrolment", tenant, id, before.as_ref(), after.as_ref())
}

/// The token's text: by the gateways that an appliance's tenant may use, or else by the director's
/// own addresses.
fn written(
    listener: &AgentListener,
    live: &Live,
    tenant: Option<&str>,
    machine: &str,
    secret: &Secret,
) -> Result<String, Problem> {
    let tenant = tenant.and_then(|tenant| live.state.get::<Tenant>(None, tenant));
    let gateways = tenant.map(|tenant| gateways_of(&live.state, &tenant.spec));
    let gateways = gateways.unwrap_or_default().into_iter();
    let of_gateways = gateways.flat_map(|gateway| gateway.spec.service_addresses());
    let own = listener.service_addresses.iter().cloned();
    // The director's own have their place, however many gateways there are.
    let of_gateways = of_gateways.take(MAX_SERVICE_ADDRESSES - own.len());
    let token = EnrolmentToken {
        secret: secret.clone(),
        authority: listener.authority,
        server_name: listener.server_name.clone(),
        service_addresses: of_gateways.chain(own).take(MAX_SERVICE_ADDRESSES).collect(),
    };
    if token.service_addresses.is_empty() {
        let text = "there is no address by which the machine reaches the director: write \
                    agents.service_addresses into the director's configuration, or enable a \
                    gateway that the tenant may use";
        let problem = Problem::new(StatusCode::CONFLICT, "no-address", text);
        return Err(problem.with(vec![conflict(machine, "gateways", "")]));
    }
    token.encode().map_err(|error| Problem::internal(&error))
}

fn no_listener() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "no-agents",
        "the director serves no agents: write a section [agents] into its configuration, and \
         restart it",
    )
}

async fn get<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, _) = place::<K>(&call);
    authorize(actor, K::GROUP, Verb::Read, tenant)?;
    let live = call.director.live().await?;
    let key = key::<K>(&call, &live)?;
    let enrolments = live.enrolments.values().map(|(enrolment, _)| enrolment);
    let of_machine = enrolments.filter(|enrolment| enrolment.machine == key);
    let mut enrolments: Vec<_> = of_machine.cloned().collect();
    enrolments.sort_by_key(|enrolment| enrolment.created);
    let identity = live
        .identities
        .get(&key)
        .map(|(identity, _)| identity.clone());
    let connection = call.director.presence.of(&key).map(|open| Connection {
        address: open.address.to_string(),
        since: open.since,
        version: open.version,
        ready: open.report.as_ref().map(|report| report.ready),
        reasons: open.report.map(|report| report.reasons).unwrap_or_default(),
    });
    let state = MachineState {
        identity,
        enrolments,
        connection,
    };
    Ok(Answer::json(StatusCode::OK, &body(&state)?))
}

async fn revoke<K: Served>(call: Call) -> Result<Answer, Problem> {
    let actor = call.actor()?;
    let (tenant, name) = place::<K>(&call);
    authorize(actor, K::GROUP, Verb::Write, tenant)?;
    let dry_run = call.query.flag("dry_run")?;
    let wanted = Wanted {
        actor,
        subject: call.subject(
            &format!("{}.identity", K::KIND),
            tenant,
            name.unwrap_or_default(),
        )?,
        dry_run,
        status: StatusCode::NO_CONTENT.as_u16(),
        idempotency: None,
    };
    let applied = call.director.change(wanted, |live, _| {
        let machine = key::<K>(&call, live)?;
        let mut transaction = Transaction::default();
        let mut differences = Vec::new();
        if let Some((identity, revision)) = live.identities.get(&machine) {
            let stored = format!("{IDENTITIES}{machine}");
            must_be(&mut transaction, &stored, Some(*revision));
            transaction.delete.insert(stored);
            differences.push(difference(&machine, Some(identity), None));
        }
        for (hash, (enrolment, revision)) in &live.enrolments {
            if enrolment.machine == machine {
                let stored = format!("{ENROLMENTS}{hash}");
                must_be(&mut transaction, &stored, Some(*revision));
                transaction.delete.insert(stored);
                differences.push(of_enrolment(&call, Some(enrolment), None));
            }
        }
        Ok(Planned {
            transaction,
            body: Value::Null,
            warnings: Vec::new(),
            differences,
        })
    });
    let applied = applied.await?;
    match dry_run {
        true => changed(applied, true),
        false => Ok(Answer::done()),
    }
}
