//! The agent as people use it: [`Admin`] on the control thread, the view and the figures.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;

use super::adaptive::Handle;
use super::control::Control;
use super::core::{Core, plane_error, store_error};
use super::explain;
use super::reload::Reloader;
use super::rows::{
    all_limits, client_view, crowd_views, effective_rows, interface_view, members, plane_mode,
    segment_view, tag,
};
use super::state::{Shared, View, shown};
use super::{adaptive, peers, requests, standing};
use crate::admin::views::{
    AdaptiveView, AttachRequest, ChangeView, Changed, ClientView, CountView, Event, EventKind,
    Explanation, HealthAnswer, HealthReport, InterfaceView, LimitRow, ListEntryView, Owner, Page,
    PageQuery, PauseRequest, ResetAnswer, ResumeRequest, SegmentView, SourceRow, Status, StoreView,
    SyncView, TableView, Tagged,
};
use crate::admin::{Admin, AdminError, Caller, ChangeOptions, Edit, ListName, Result};
use crate::clock;
use crate::config::store_url::StoreUrl;
use crate::dataplane::{AttachOptions, DataPlane};
use crate::metrics;
use crate::policy::model::{DEFAULT_SEGMENT, Document};
use crate::policy::resolve::segment_of;
use crate::policy::slots::PolicyName;
use crate::store::Store;

/// The agent as people use it.
pub(super) struct Service {
    pub(super) control: Control,
    pub(super) adaptive: Arc<Handle>,
    pub(super) plane: Arc<dyn DataPlane>,
    pub(super) store: Arc<dyn Store>,
    pub(super) shared: Arc<Shared>,
    pub(super) reloader: Arc<Reloader>,
    pub(super) store_url: StoreUrl,
    pub(super) v6_prefix_len: u8,
    pub(super) pin_dir: String,
    pub(super) config_file: Option<String>,
}

impl Service {
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn DataPlane, &View) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let plane = Arc::clone(&self.plane);
        let view = self.shared.view.load_full();
        tokio::task::spawn_blocking(move || work(plane.as_ref(), &view))
            .await
            .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
    }

    fn note(&self, caller: &Caller, what: &str) {
        tracing::info!(by = %caller.name, what, "admin");
        self.shared
            .events
            .push(EventKind::Change, format!("{}: {what}", caller.name));
    }
}

fn not_found(what: &'static str, name: &str) -> AdminError {
    AdminError::NotFound {
        what,
        name: name.to_owned(),
    }
}

#[async_trait]
impl Admin for Service {
    async fn status(&self) -> Result<Status> {
        let view = self.shared.view.load_full();
        let figured = self.shared.figured.load_full();
        let problems = self.problems();
        let store = self.store.status();
        let reload_error = self.shared.reload_error.load();
        let mut warnings = store.warnings.clone();
        warnings.extend(view.compiled.warnings.iter().map(ToString::to_string));
        if view.mode != crate::policy::model::Mode::Enforce {
            warnings.push("the agent runs in shadow: it counts and drops nothing".to_owned());
        }
        if self.shared.fleet.load().is_some_and(|fleet| fleet.apart) {
            warnings.push(
                "the shared store does not answer: packets are limited as `on_store_loss` says"
                    .to_owned(),
            );
        }
        warnings.extend(self.degraded());
        let interfaces = self.interfaces().await?;
        if interfaces.is_empty() {
            warnings.push("no interface is attached: no packet is judged".to_owned());
        }
        let counts = ratelimiter_common::verdict::Reason::ALL
            .into_iter()
            .flat_map(|reason| {
                use ratelimiter_common::verdict::Verdict;
                [Verdict::Pass, Verdict::Drop].map(|verdict| (reason, verdict))
            })
            .map(|(reason, verdict)| {
                let count = figured.stats.count(reason, verdict);
                CountView {
                    reason: reason.as_str().to_owned(),
                    verdict: metrics::verdict_word(verdict).to_owned(),
                    packets: count.packets,
                    bytes: count.bytes,
                }
            })
            .filter(|count| count.packets > 0)
            .collect();
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            mode: view.mode,
            ready: self.started() && problems.is_empty(),
            problems,
            warnings,
            uptime_s: self.shared.begin.elapsed().as_secs_f64(),
            revision: view.stored.revision,
            segments: view.document.segments.len() as u64,
            clients: view.document.clients.len() as u64,
            allowed: view.document.allow.len() as u64,
            blocked: view.document.block.len() as u64,
            config_file: self.config_file.clone(),
            reload_error: Some(reload_error.to_string()).filter(|text| !text.is_empty()),
            interfaces,
            pin_dir: self.pin_dir.clone(),
            program_id: figured.health.program_id,
            adopted: figured.health.adopted,
            repairs: figured.health.repairs,
            pending: view
                .trials
                .iter()
                .map(super::state::Trial::pending)
                .collect(),
            offered: figured.stats.offered(),
            counts,
            packets_per_s: figured.packets_per_s,
            dropped_per_s: figured.dropped_per_s,
            tables: figured
                .figures
                .tables
                .iter()
                .map(|table| TableView {
                    name: table.name.to_owned(),
                    capacity: table.capacity,
                    used: table.used,
                    bytes: table.bytes,
                })
                .collect(),
            crowd: crowd_views(&view, &figured),
            store: StoreView {
                kind: store.kind.to_owned(),
                location: store.location,
                warnings: store.warnings,
            },
            sync: self.shared.sync(),
            rss_bytes: metrics::rss_bytes(),
        })
    }

    fn problems(&self) -> Vec<String> {
        self.shared.problems()
    }

    fn started(&self) -> bool {
        self.shared.started.load(Ordering::Relaxed)
    }

    fn stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Relaxed)
    }

    async fn clients(&self, query: PageQuery) -> Result<Page<ClientView>> {
        let view = self.shared.view.load_full();
        let matching = view.document.clients.iter().filter(|(id, client)| {
            let sources: Vec<String> = if query.q.is_some() {
                client.sources.iter().map(ToString::to_string).collect()
            } else {
                Vec::new()
            };
            query.matches(
                [id.as_str(), segment_of(client)]
                    .into_iter()
                    .chain(sources.iter().map(String::as_str)),
            )
        });
        Ok(query.page(
            matching,
            |(id, _)| (*id).clone(),
            |(id, client)| client_view(&view, id, client),
        ))
    }

    async fn client(&self, id: &str) -> Result<Tagged<ClientView>> {
        let view = self.shared.view.load_full();
        let client = view
            .document
            .clients
            .get(id)
            .ok_or_else(|| not_found("client", id))?;
        Ok(Tagged {
            value: client_view(&view, id, client),
            tag: tag(&view, &format!("clients/{id}")),
        })
    }

    async fn client_limit(&self, id: &str, name: &str) -> Result<Tagged<LimitRow>> {
        let view = self.shared.view.load_full();
        let client = view
            .document
            .clients
            .get(id)
            .ok_or_else(|| not_found("client", id))?;
        let own = all_limits(&view)
            .into_iter()
            .find(|row| row.owner == Owner::Client && row.owner_name == id && row.name == name);
        let value = own
            .or_else(|| {
                effective_rows(&view, Some(id), Some(client), segment_of(client))
                    .into_iter()
                    .find(|row| row.name == name)
            })
            .ok_or_else(|| not_found("limit", name))?;
        Ok(Tagged {
            value,
            tag: tag(&view, &format!("clients/{id}")),
        })
    }

    async fn segments(&self, query: PageQuery) -> Result<Page<SegmentView>> {
        let view = self.shared.view.load_full();
        let members = members(&view.document);
        let matching = view
            .document
            .segments
            .iter()
            .filter(|(name, _)| query.matches([name.as_str()]));
        Ok(query.page(
            matching,
            |(name, _)| (*name).clone(),
            |(name, segment)| {
                let clients = members.get(name.as_str()).copied().unwrap_or(0);
                segment_view(&view, name, segment, clients)
            },
        ))
    }

    async fn segment(&self, name: &str) -> Result<Tagged<SegmentView>> {
        let view = self.shared.view.load_full();
        let segment = view
            .document
            .segments
            .get(name)
            .ok_or_else(|| not_found("segment", name))?;
        let clients = members(&view.document).get(name).copied().unwrap_or(0);
        Ok(Tagged {
            value: segment_view(&view, name, segment, clients),
            tag: tag(&view, &format!("segments/{name}")),
        })
    }

    async fn limits(&self, query: PageQuery) -> Result<Page<LimitRow>> {
        let view = self.shared.view.load_full();
        let matching = all_limits(&view)
            .into_iter()
            .filter(|row| query.matches([row.owner_name.as_str(), row.name.as_str()]));
        let key = |row: &LimitRow| {
            let owner = match row.owner {
                Owner::Client => "clients",
                Owner::Segment => "segments",
            };
            format!("{owner}/{}/{}", row.owner_name, row.name)
        };
        Ok(query.page(matching, key, |row| row))
    }

    async fn list(&self, list: ListName, query: PageQuery) -> Result<Page<ListEntryView>> {
        let view = self.shared.view.load_full();
        let now_unix_ms = clock::unix_ms();
        let matching = list.of(&view.document).iter().filter(|(prefix, entry)| {
            entry.expires_unix_ms.is_none_or(|end| end > now_unix_ms)
                && query.matches([
                    prefix.to_string().as_str(),
                    entry.reason.as_deref().unwrap_or_default(),
                ])
        });
        Ok(query.page(
            matching,
            |(prefix, _)| prefix.to_string(),
            |(prefix, entry)| ListEntryView {
                cidr: prefix.to_string(),
                reason: entry.reason.clone(),
                by: entry.by.clone(),
                expires_unix_ms: entry.expires_unix_ms,
                defined_in: view.list_defined_in(list, prefix),
                pending: view.trial(&format!("{}/{prefix}", list.as_str())),
            },
        ))
    }

    async fn document(&self) -> Result<Tagged<Document>> {
        let view = self.shared.view.load_full();
        Ok(Tagged {
            value: (*view.stored).clone(),
            tag: tag(&view, "document"),
        })
    }

    async fn change(&self, edit: Edit, options: ChangeOptions, caller: &Caller) -> Result<Changed> {
        self.shared.met_fleet().await;
        let caller = caller.clone();
        self.control
            .with(move |core| core.change(&edit, &options, &caller))
            .await
    }

    async fn changes(&self, query: PageQuery) -> Result<Page<ChangeView>> {
        let before = match &query.after {
            Some(after) => Some(after.parse().map_err(|_| {
                AdminError::invalid("/after", "`after` is not the revision of a change")
            })?),
            None => None,
        };
        let store = Arc::clone(&self.store);
        let found =
            tokio::task::spawn_blocking(move || store.changes(before, crate::store::MAX_CHANGES))
                .await
                .map_err(|_| AdminError::Unavailable("the agent is stopping".to_owned()))?
                .map_err(store_error)?;
        let view = self.shared.view.load_full();
        let all = PageQuery {
            after: None,
            ..query.clone()
        };
        let matching = found
            .into_iter()
            .filter(|entry| query.matches([entry.change.what.as_str(), entry.change.by.as_str()]));
        Ok(all.page(
            matching,
            |entry| entry.revision.to_string(),
            |change| ChangeView {
                pending: view.trials.iter().any(|t| t.revision == change.revision),
                change,
            },
        ))
    }

    async fn confirm(&self, revision: Option<u64>, caller: &Caller) -> Result<Vec<Changed>> {
        self.shared.met_fleet().await;
        let by = caller.name.clone();
        self.control
            .with(move |core| core.confirm(revision, &by))
            .await
    }

    async fn rollback(&self, revision: Option<u64>, caller: &Caller) -> Result<Vec<Changed>> {
        let by = caller.name.clone();
        self.control
            .with(move |core| core.rollback(revision, &by))
            .await
    }

    async fn sources(&self, query: PageQuery) -> Result<Page<SourceRow>> {
        let view = self.shared.view.load_full();
        let talkers = Arc::clone(&self.shared.figured.load().talkers);
        let (now_ns, now_unix_ms) = (clock::monotonic_ns(), clock::unix_ms());
        let rows = talkers.iter().map(|talker| {
            let name = view.compiled.policies.get(&talker.slot).map(|p| &p.name);
            let (client, segment) = match name {
                Some(PolicyName::Client(id)) => {
                    let client = view.document.clients.get(id);
                    (Some(id.clone()), client.map_or(DEFAULT_SEGMENT, segment_of))
                }
                Some(PolicyName::Segment(segment)) => (None, segment.as_str()),
                None => (None, DEFAULT_SEGMENT),
            };
            SourceRow {
                source: shown(talker.key, talker.family, self.v6_prefix_len),
                client,
                segment: segment.to_owned(),
                packets_per_s: talker.packets_per_s,
                dropped_per_s: talker.dropped_per_s,
                bytes_per_s: talker.bytes_per_s,
                packets: talker.packets,
                dropped: talker.dropped,
                packets_error: talker.error,
                reason: ratelimiter_common::verdict::Reason::from_abi(talker.reason)
                    .map_or("unknown", ratelimiter_common::verdict::Reason::as_str)
                    .to_owned(),
                last_seen_unix_ms: now_unix_ms
                    .saturating_sub(now_ns.saturating_sub(talker.seen_ns) / 1_000_000),
            }
        });
        let matching = rows.filter(|row| {
            query.matches([
                row.source.as_str(),
                row.segment.as_str(),
                row.client.as_deref().unwrap_or_default(),
            ])
        });
        Ok(query.page(matching, |row| row.source.clone(), |row| row))
    }

    async fn explain_source(&self, address: IpAddr) -> Result<Explanation> {
        let v6_prefix_len = self.v6_prefix_len;
        let store = Arc::clone(&self.store);
        let followed = self.shared.adaptive.load_full();
        self.blocking(move |plane, view| {
            let mut found = explain::source(view, plane, v6_prefix_len, address)?;
            adaptive::explain(&mut found, &followed);
            standing::sign(&mut found, store.as_ref()).map(|()| found)
        })
        .await
    }

    async fn explain_client(&self, id: &str) -> Result<Explanation> {
        let (v6_prefix_len, id) = (self.v6_prefix_len, id.to_owned());
        let checks = self.shared.checks.clone();
        let store = Arc::clone(&self.store);
        let followed = self.shared.adaptive.load_full();
        self.blocking(move |plane, view| {
            let explained = explain::client(view, plane, v6_prefix_len, &id);
            let mut found = requests::explain(&checks, view, &id, explained)?;
            adaptive::explain(&mut found, &followed);
            standing::sign(&mut found, store.as_ref()).map(|()| found)
        })
        .await
    }

    async fn reset_source(&self, address: IpAddr, caller: &Caller) -> Result<ResetAnswer> {
        let v6_prefix_len = self.v6_prefix_len;
        let lift = move |core: &mut Core| core.lift(Some(address), None);
        let lifted = self.control.with(lift).await?;
        let mut answer = self
            .blocking(move |plane, view| explain::reset(view, plane, v6_prefix_len, address))
            .await?;
        requests::say_lifted(&mut answer, lifted);
        self.note(caller, &answer.summary);
        Ok(answer)
    }

    async fn reset_client(&self, id: &str, caller: &Caller) -> Result<ResetAnswer> {
        let (v6_prefix_len, client) = (self.v6_prefix_len, id.to_owned());
        let checks = self.shared.checks.clone();
        let whose = id.to_owned();
        let lift = move |core: &mut Core| core.lift(None, Some(&whose));
        let lifted = self.control.with(lift).await?;
        let mut answer = self
            .blocking(move |plane, view| {
                let reset = explain::reset_client(view, plane, v6_prefix_len, &client);
                requests::reset(&checks, &client, reset)
            })
            .await?;
        requests::say_lifted(&mut answer, lifted);
        self.note(caller, &answer.summary);
        Ok(answer)
    }

    async fn interfaces(&self) -> Result<Vec<InterfaceView>> {
        self.blocking(|plane, _| Ok(plane.interfaces().iter().map(interface_view).collect()))
            .await
    }

    async fn attach(
        &self,
        interface: &str,
        request: AttachRequest,
        caller: &Caller,
    ) -> Result<InterfaceView> {
        let people = [
            (caller.ssh_peer, "SSH peer of whoever attached"),
            (caller.address, "address of whoever attached"),
        ];
        let whom = peers::to_protect(&self.plane, &self.store_url, &people).await;
        // Before the first packet is judged.
        if let Err(error) = self.control.with(move |core| core.protect(&whom)).await {
            // A full disk must not keep anybody from attaching.
            tracing::error!(%error, "gateways and whoever attaches are not let in");
        }
        let name = interface.to_owned();
        let options = AttachOptions {
            mode: plane_mode(request.mode),
            replace: request.replace,
            wait: false,
        };
        let view = self
            .blocking(move |plane, _| {
                plane.attach(&name, options).map_err(plane_error)?;
                plane
                    .interfaces()
                    .iter()
                    .find(|interface| interface.name == name)
                    .map(interface_view)
                    .ok_or_else(|| not_found("interface", &name))
            })
            .await?;
        self.note(caller, &format!("attach to `{interface}`"));
        Ok(view)
    }

    async fn detach(&self, interface: &str, caller: &Caller) -> Result<bool> {
        let name = interface.to_owned();
        let detached = self
            .blocking(move |plane, _| plane.detach(&name).map_err(plane_error))
            .await?;
        if detached {
            self.note(caller, &format!("detach from `{interface}`"));
        }
        Ok(detached)
    }

    async fn reload(&self, caller: &Caller) -> Result<Changed> {
        self.reloader.reload(&self.control, &caller.name).await
    }

    async fn events(&self, query: PageQuery) -> Result<Page<Event>> {
        Ok(self.shared.events.page(&query))
    }

    async fn event_after(&self, after: u64) {
        self.shared.events.after(after).await;
    }

    async fn checks(&self) -> Result<crate::admin::views::ChecksView> {
        Ok(super::observe::throughput::view(&self.shared))
    }

    async fn health(&self, report: HealthReport, caller: &Caller) -> Result<HealthAnswer> {
        self.adaptive.health(report, caller).await
    }

    async fn adaptive(&self) -> Result<AdaptiveView> {
        Ok((**self.shared.adaptive.load()).clone())
    }

    async fn pause(&self, request: PauseRequest, caller: &Caller) -> Result<AdaptiveView> {
        let PauseRequest { backend, factor } = request;
        let what = format!(
            "pause {} at {}",
            backend.as_deref().unwrap_or("every backend"),
            factor.map_or_else(|| "what is in force".to_owned(), |f| f.to_string())
        );
        self.adaptive.pause(backend, factor).await?;
        self.note(caller, &what);
        self.adaptive().await
    }

    async fn resume(&self, request: ResumeRequest, caller: &Caller) -> Result<AdaptiveView> {
        let backend = request.backend;
        let what = format!("resume {}", backend.as_deref().unwrap_or("every backend"));
        self.adaptive.resume(backend).await?;
        self.note(caller, &what);
        self.adaptive().await
    }

    async fn sync(&self) -> Result<SyncView> {
        Ok(self.shared.sync())
    }

    async fn resync(&self, caller: &Caller) -> Result<SyncView> {
        self.note(caller, "resync");
        self.shared.checks.limiter().resync();
        Ok(self.shared.sync())
    }

    fn degraded(&self) -> Option<String> {
        self.shared.degraded()
    }

    async fn metrics(&self, open_metrics: bool) -> Result<String> {
        let view = self.shared.view.load_full();
        let figured = self.shared.figured.load_full();
        let interfaces = self.interfaces().await?;
        Ok(metrics::render(
            &metrics::Snapshot {
                interfaces: &interfaces,
                stats: &figured.stats,
                figures: &figured.figures,
                crowd: &crowd_views(&view, &figured),
                segments: &view.compiled.segments,
                health: &figured.health,
                ready: self.started() && self.problems().is_empty(),
                enforcing: view.mode == crate::policy::model::Mode::Enforce,
                revision: view.stored.revision,
                clients: view.document.clients.len(),
                allowed: view.document.allow.len(),
                blocked: view.document.block.len(),
                pending: view.trials.len(),
                confirm_by_unix_ms: view.trials.iter().map(|t| t.deadline_unix_ms).min(),
                reloads: [
                    self.shared.reloads_ok.load(Ordering::Relaxed),
                    self.shared.reloads_failed.load(Ordering::Relaxed),
                ],
                samples_lost: figured.samples_lost,
                drop_events: figured.drop_events,
                start_unix_s: (clock::unix_ms() as f64 / 1e3)
                    - self.shared.begin.elapsed().as_secs_f64(),
                http: &self.shared.http,
                sync: &self.shared.sync(),
                checks: &self.shared.checks,
                check_connections: &self.shared.check_connections,
                adaptive: &self.shared.adaptive.load(),
                fleet: **self.shared.fleet.load(),
            },
            open_metrics,
        ))
    }
}
