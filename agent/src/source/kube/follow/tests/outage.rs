//! Every way in which an API server fails, with a clock that stands still: what is told, what is asked again, and when.

use std::time::{Duration, SystemTime};

use super::super::{ANSWER, ASKED_TO_WAIT, FOLLOWED_WELL, SILENT, SPREAD, WATCH_SECONDS};
use super::fake::Fake;

/// The first wait of the backoff and its jitter: client-go's 800 ms, and up to as much again; and what the clock, which counts in whole milliseconds, is
/// late by.
const FIRST: std::ops::Range<Duration> = Duration::from_millis(800)..Duration::from_millis(1_601);
/// Long enough to be no blip, short enough to be no outage.
const BLIP: Duration = Duration::from_secs(1);

/// How long ago something was, by the clock that the paused one does not move.
fn ago(since: SystemTime) -> Duration {
    SystemTime::now().duration_since(since).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_for_minutes_is_asked_ever_less_and_then_watched_on() {
    let (mut fake, watch) = Fake::synced(&["a", "b"]).await;
    watch.tell("ADDED", "c", "6");
    assert_eq!(fake.told(1).await, ["+c"]);
    watch.breaks();
    let (told, since) = fake.next().await;
    assert!(told.starts_with("stale: "), "{told}");
    assert!(ago(since.unwrap()) < Duration::from_mins(1));
    let mut longest = Duration::ZERO;
    for attempt in 0..12 {
        let (ask, waited) = fake.asked_after().await;
        if attempt == 0 {
            assert!(FIRST.contains(&waited), "{waited:?}");
        }
        assert!(waited <= Duration::from_mins(1), "{waited:?}");
        longest = longest.max(waited);
        assert!(ask.is_watch(), "{}", ask.path);
        assert_eq!(ask.parameter("resourceVersion"), Some("6"));
        ask.refuse();
        tokio::task::yield_now().await;
    }
    assert!(longest >= Duration::from_secs(30), "{longest:?}");
    // One more line, because it is another reason; since then as before.
    let (refused, again) = fake.next().await;
    assert!(refused.contains("refused"), "{refused}");
    assert_eq!(again, since);
    fake.nothing_told();
    let watch = fake.asked().await.watch();
    assert_eq!(
        fake.told(1).await,
        ["synced"],
        "nothing was deleted or told twice"
    );
    watch.tell("DELETED", "a", "9");
    assert_eq!(fake.told(1).await, ["-a"]);
}

/// What a server says that takes no more: priority and fairness, an etcd that is away, a start.
#[tokio::test(start_paused = true)]
async fn answers_of_429_500_and_503_are_failures_at_once() {
    for code in [429, 500, 503, 504] {
        let mut fake = Fake::start().await;
        let (ask, _) = fake.asked_after().await;
        ask.fail(code, "not now", None);
        let (told, _) = fake.next().await;
        assert!(told.contains(&format!("not now ({code})")), "{told}");
        let (ask, waited) = fake.asked_after().await;
        assert!(FIRST.contains(&waited), "{waited:?}");
        ask.page(&["a"], "5", "");
        assert_eq!(fake.told(2).await, ["+a", "synced"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_asks_for_time_is_given_it() {
    let mut fake = Fake::start().await;
    let wait = Duration::from_secs(20);
    fake.asked().await.fail(429, "busy", Some(20));
    fake.told(1).await;
    let (ask, waited) = fake.asked_after().await;
    assert!(
        waited >= wait + FIRST.start && waited < wait + FIRST.end,
        "not together with others that were told the same: {waited:?}"
    );
    ask.fail(429, "busy", Some(u32::MAX));
    let (_, waited) = fake.asked_after().await;
    assert!(
        waited < ASKED_TO_WAIT + BLIP * 10,
        "not for ever: {waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn agents_that_lost_the_server_together_do_not_come_back_together() {
    let mut waits = Vec::new();
    for _ in 0..8 {
        let mut fake = Fake::start().await;
        fake.asked().await.refuse();
        fake.told(1).await;
        waits.push(fake.asked_after().await.1);
    }
    waits.sort_unstable();
    waits.dedup();
    assert!(waits.len() > 4, "{waits:?}");
}

/// What ends connections every minute makes nobody wait longer than what ends one: the waits grow where the server cannot be followed.
#[tokio::test(start_paused = true)]
async fn connections_that_break_now_and_then_are_opened_again_soon() {
    let (mut fake, mut watch) = Fake::synced(&["a"]).await;
    for _ in 0..8 {
        for version in ["6", "7"] {
            tokio::time::sleep(FOLLOWED_WELL / 2).await;
            watch.bookmark(version);
        }
        tokio::task::yield_now().await;
        watch.breaks();
        let told = fake.told(1).await;
        assert!(told[0].starts_with("stale: "), "{told:?}");
        let (ask, waited) = fake.asked_after().await;
        assert!(FIRST.contains(&waited), "{waited:?}");
        watch = ask.watch();
        assert_eq!(fake.told(1).await, ["synced"]);
    }
    // One that breaks at once is none that was followed well.
    let mut longest = Duration::ZERO;
    for _ in 0..4 {
        watch.breaks();
        fake.told(1).await;
        let (ask, waited) = fake.asked_after().await;
        longest = longest.max(waited);
        watch = ask.watch();
        assert_eq!(fake.told(1).await, ["synced"]);
    }
    assert!(longest >= FIRST.start * 4, "{longest:?}");
}

/// The first kind that gets through shows the way to the others.
#[tokio::test(start_paused = true)]
async fn one_kind_that_recovers_wakes_the_others() {
    let mut fake = Fake::followed_by(2).await;
    for _ in 0..12 {
        fake.asked().await.refuse();
    }
    fake.asked().await.page(&["a"], "5", "");
    let mut next = [fake.asked_after().await, fake.asked_after().await];
    next.sort_by_key(|(ask, _)| ask.is_watch());
    let (list, waited) = &next[0];
    assert!(!list.is_watch() && *waited <= SPREAD, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn watches_end_at_different_times_and_one_that_ends_early_is_opened_again_a_little_later() {
    let mut seconds = Vec::new();
    let (mut fake, mut watch) = Fake::synced(&["a"]).await;
    for _ in 0..8 {
        // Its time has not come.
        tokio::time::advance(BLIP * 2).await;
        drop(watch);
        let (ask, waited) = fake.asked_after().await;
        assert!(waited <= SPREAD, "{waited:?}");
        let asked: u32 = ask.parameter("timeoutSeconds").unwrap().parse().unwrap();
        assert!(WATCH_SECONDS.contains(&asked), "{asked}");
        seconds.push(asked);
        watch = ask.watch();
    }
    seconds.sort_unstable();
    seconds.dedup();
    assert!(seconds.len() > 4, "{seconds:?}");
    fake.nothing_told();
}

#[tokio::test(start_paused = true)]
async fn objects_that_changed_while_the_history_was_lost_are_one_difference() {
    let (mut fake, watch) = Fake::synced(&["gone", "kept"]).await;
    watch.breaks();
    fake.told(1).await;
    fake.asked().await.watch().gone();
    let list = fake.asked().await;
    assert!(!list.is_watch(), "{}", list.path);
    assert_eq!(list.parameter("resourceVersion"), None);
    list.page(&["kept", "new"], "8", "");
    assert_eq!(
        fake.told(4).await,
        ["+kept", "+new", "-gone", "synced"],
        "what is gone goes when the list is whole"
    );
    assert_eq!(fake.asked().await.parameter("resourceVersion"), Some("8"));
}

#[tokio::test(start_paused = true)]
async fn a_server_whose_database_is_older_than_what_was_seen_is_listed_again() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    watch.breaks();
    fake.told(1).await;
    let future = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "code": 504, "reason": "Timeout", "message": "Too large resource version: 5, current: 3",
        "details": { "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }], "retryAfterSeconds": 1 },
    });
    fake.asked().await.json(504, &future);
    fake.asked().await.page(&["b"], "3", "");
    assert_eq!(fake.told(3).await, ["+b", "-a", "synced"]);
}

/// Once in a while is no trouble: the list helped the last time.
#[tokio::test(start_paused = true)]
async fn a_history_that_is_lost_again_later_is_listed_again_at_once() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    watch.gone();
    fake.asked().await.page(&["a"], "8", "");
    assert_eq!(fake.told(2).await, ["+a", "synced"]);
    let watch = fake.asked().await.watch();
    watch.tell("ADDED", "b", "9");
    assert_eq!(fake.told(1).await, ["+b"]);
    watch.gone();
    let (list, waited) = fake.asked_after().await;
    assert_eq!(waited, Duration::ZERO);
    fake.nothing_told();
    list.page(&["a", "b"], "20", "");
    assert_eq!(fake.told(3).await, ["+a", "+b", "synced"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_never_gets_whole_is_a_failure_that_is_told() {
    let mut fake = Fake::start().await;
    for _ in 0..2 {
        fake.asked().await.page(&["a"], "5", "token");
        fake.asked().await.fail(410, "too old", None);
    }
    let told = fake.told(3).await;
    assert_eq!(told[..2], ["+a", "+a"]);
    assert!(told[2].contains("410 Gone"), "{told:?}");
    let (ask, waited) = fake.asked_after().await;
    assert!(FIRST.contains(&waited), "{waited:?}");
    ask.page(&["b"], "6", "");
    assert_eq!(fake.told(3).await, ["+b", "-a", "synced"]);
}

/// Slow is not gone, and nothing is concluded from half a list.
#[tokio::test(start_paused = true)]
async fn a_slow_list_is_waited_for_and_one_that_never_comes_empties_nothing() {
    let (mut fake, watch) = Fake::synced(&["a", "b"]).await;
    watch.gone();
    let first = fake.asked().await;
    tokio::time::sleep(ANSWER - BLIP).await;
    first.page(&["a"], "8", "token");
    assert_eq!(fake.told(1).await, ["+a"]);
    // The second page: taken, and never answered.
    let unanswered = fake.asked().await;
    let (told, since) = fake.next().await;
    assert!(told.contains("no answer within 60s"), "{told}");
    let ago = ago(since.unwrap());
    assert!(ago >= ANSWER && ago < ANSWER * 2, "{ago:?}");
    // It begins again.
    let again = fake.asked().await;
    assert_eq!(again.parameter("continue"), None);
    unanswered.page(&[], "8", "");
    fake.nothing_told();
    again.page(&["a", "b"], "9", "");
    assert_eq!(fake.told(3).await, ["+a", "+b", "synced"]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_list_is_no_empty_list() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    watch.gone();
    let nothing = serde_json::json!({ "kind": "List", "apiVersion": "v1", "items": [] });
    fake.asked().await.json(200, &nothing);
    let told = fake.told(1).await;
    assert!(told[0].contains("it is no list"), "{told:?}");
    fake.asked().await.json(200, &serde_json::json!({}));
    let told = fake.told(1).await;
    assert!(told[0].starts_with("stale: "), "{told:?}");
    fake.asked().await.page(&["a"], "9", "");
    assert_eq!(fake.told(2).await, ["+a", "synced"]);
}

/// Only when the server does not answer either, the kind is stale: since it was last heard.
#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_opened_anew_from_its_place() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    for version in ["6", "7"] {
        tokio::time::sleep(SILENT - BLIP).await;
        watch.bookmark(version);
    }
    let (ask, waited) = fake.asked_after().await;
    assert_eq!(waited, SILENT);
    assert_eq!(ask.parameter("resourceVersion"), Some("7"));
    fake.nothing_told();
    // What happened meanwhile comes by the new one; the old one has no say.
    watch.tell("ADDED", "never", "8");
    let watch = ask.watch();
    watch.tell("ADDED", "b", "8");
    assert_eq!(fake.told(1).await, ["+b"]);

    let (ask, waited) = fake.asked_after().await;
    assert_eq!(waited, SILENT);
    let (told, since) = fake.next().await;
    assert!(told.contains("no answer"), "{told}");
    let ago = ago(since.unwrap());
    assert!(
        ago >= SILENT + ANSWER && ago < SILENT + ANSWER * 2,
        "{ago:?}"
    );
    drop(ask);
}

/// A token that was rotated costs nothing; one that stays bad is said, and read again with every attempt.
#[tokio::test(start_paused = true)]
async fn refused_credentials_are_read_again() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    tokio::time::sleep(BLIP * 2).await;
    drop(watch);
    let ask = fake.asked().await;
    assert_eq!(ask.credentials, 0);
    ask.fail(401, "Unauthorized", None);
    let (ask, waited) = fake.asked_after().await;
    assert_eq!((ask.credentials, waited), (1, Duration::ZERO));
    let watch = ask.watch();
    watch.tell("ADDED", "b", "6");
    assert_eq!(fake.told(1).await, ["+b"], "never stale");

    tokio::time::sleep(BLIP * 2).await;
    drop(watch);
    fake.asked().await.fail(401, "Unauthorized", None);
    fake.asked().await.fail(401, "Unauthorized", None);
    let told = fake.told(1).await;
    assert!(told[0].contains("credentials are not accepted"), "{told:?}");
    let (ask, waited) = fake.asked_after().await;
    assert_eq!(ask.credentials, 3);
    assert!(FIRST.contains(&waited), "{waited:?}");
    let _watch = ask.watch();
    assert_eq!(fake.told(1).await, ["synced"]);
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_taken_away_keeps_its_last_state_until_it_is_given_back() {
    let (mut fake, watch) = Fake::synced(&["a"]).await;
    drop(watch);
    fake.asked()
        .await
        .fail(403, "namespaces is forbidden", None);
    let (told, since) = fake.next().await;
    assert!(told.contains("get, list and watch namespaces"), "{told}");
    for _ in 0..3 {
        fake.asked()
            .await
            .fail(403, "namespaces is forbidden", None);
    }
    let ask = fake.asked().await;
    assert_eq!(ask.credentials, 0, "the credentials were not the matter");
    assert_eq!(ask.parameter("resourceVersion"), Some("5"));
    fake.nothing_told();
    // Another reason, the same beginning.
    ask.fail(500, "etcd is away", None);
    assert_eq!(fake.next().await.1, since);
    let _watch = fake.asked().await.watch();
    assert_eq!(fake.told(1).await, ["synced"]);
}
