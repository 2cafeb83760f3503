//! `--max-blackout`: what will take too long does not freeze the container.

use crate::{
    container::{Container, How},
    story::Story,
};

/// A link of 2.5 MB/s between the hosts.
const SLOW: &str = "tc qdisc add dev eth0 root tbf rate 20mbit burst 64kb latency 400ms";

#[test]
fn a_blackout_that_is_predicted_to_be_too_long_does_not_begin() {
    let story = Story::up("blackout");
    let container = Container::new(How::Podman("crun"));
    story.start(story.a(), &container);
    let fill = "redis-cli -h 192.0.2.10 eval \"math.randomseed(7); for i=1,160 do local t={} for j=1,16384 do t[j]=string.char(math.random(0,255), math.random(0,255), math.random(0,255), math.random(0,255)) end redis.call('set', 'fill'..i, table.concat(t)) end\" 0";
    story.peer().sh(fill).expect("ten megabytes");
    let loaded = story.load(&container);

    // Not even without a link: the container's memory is written and read in that time.
    let ended = story.migrate(story.a(), &container, &["--max-blackout", "100"]);
    assert_eq!(
        (ended.code(), ended.outcome()),
        (Some(3), "refused"),
        "{}",
        ended.said()
    );
    assert!(
        ended.said().contains("--max-blackout allows 100 ms"),
        "{}",
        ended.said()
    );

    // Over a slow link the pages are still on their way when the last round ends.
    story.a().sh(SLOW).expect("a slow link");
    let ended = story.migrate(story.a(), &container, &["--max-blackout", "1000"]);
    let report = ended.report.as_ref().expect("a report");
    let prediction = &report["plan"]["prediction"];
    let rate = prediction["rate"]["bytes_per_s"].as_f64();
    let rate = rate.unwrap_or_else(|| panic!("no rate: {}\n{}", ended.said(), story.logs()));
    assert!((1e6..6e6).contains(&rate), "{prediction}");
    assert_eq!(ended.outcome(), "kept", "{}", ended.said());
    assert!(
        ended.said().contains("is predicted after the last round"),
        "{}",
        ended.said()
    );
    assert!(report["blackout_ms"].is_null(), "{report}");
    let least = prediction["least_ms"].as_f64().expect("a figure");
    let most = prediction["blackout_ms"].as_f64().expect("a figure");
    assert!(least < 1000.0 && most > 1000.0, "{prediction}");
    story.lives_only_on(story.a(), &container);
    story.nothing_is_left();

    // Over a fast one it goes within the limit.
    story
        .a()
        .sh("tc qdisc del dev eth0 root")
        .expect("a fast link");
    let ended = story.migrate(story.a(), &container, &["--max-blackout", "20000"]);
    assert_eq!(
        ended.outcome(),
        "moved",
        "{}\n{}",
        ended.said(),
        story.logs()
    );
    story.lives_only_on(story.b(), &container);
    loaded.end_clean();
    story.nothing_is_left();
}
