//! The file in `deploy/` names every key with its default, and nothing else.

use super::*;

const DOCUMENTED: &str = include_str!("../../../deploy/piton.toml");

#[test]
fn the_documented_file_says_exactly_the_defaults() {
    let documented: toml::Table = toml::from_str(DOCUMENTED).unwrap();
    // What is left open when nothing is given has its default elsewhere.
    let mut defaults = Config::default();
    defaults.shards.count = Some(16);
    let limits = Limits::ALL.iter().map(|(name, default, _)| ((*name).to_owned(), *default));
    defaults.limits = limits.collect();
    assert_eq!(documented, toml::Table::try_from(&defaults).unwrap());
    let parsed: Config = toml::from_str(DOCUMENTED).unwrap();
    assert_eq!(parsed, defaults);
}

#[test]
fn every_key_of_the_documented_file_has_a_comment_above_it() {
    let lines: Vec<&str> = DOCUMENTED.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let is_key = line.contains(" = ") && !line.starts_with('#');
        if is_key {
            assert!(lines[number - 1].starts_with('#'), "line {}: {line}", number + 1);
        }
    }
}

#[test]
fn the_samples_are_the_nodes_of_one_cluster() {
    let samples = [
        include_str!("../../../deploy/config/node1.toml"),
        include_str!("../../../deploy/config/node2.toml"),
        include_str!("../../../deploy/config/node3.toml"),
    ];
    let samples = samples.map(|text| toml::from_str::<Config>(text).unwrap());
    let called = samples.each_ref().map(|sample| sample.peer.advertised.clone());
    for sample in &samples {
        sample.check().unwrap();
        assert!(!sample.cluster.bootstrap, "it would found a cluster where its disk was lost");
        assert_eq!(sample.cluster.join, called);
        let mut but_for_itself = sample.clone();
        but_for_itself.peer.advertised.clone_from(&samples[0].peer.advertised);
        but_for_itself.cluster.zone.clone_from(&samples[0].cluster.zone);
        assert_eq!(but_for_itself, samples[0]);
    }
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let error = toml::from_str::<Config>("[listen]\nprot = 1\n").unwrap_err();
    assert!(error.to_string().contains("prot"), "{error}");
}

#[test]
fn defaults_pass_the_check() {
    Config::default().check().unwrap();
}

#[test]
fn a_limit_is_set_by_name_and_an_unknown_one_is_refused() {
    let mut config = Config::default();
    config.set_limit("signals_max = 12_000").unwrap();
    config.set_limit("request_id_ms_min = 0").unwrap();
    config.check().unwrap();
    assert_eq!(config.limits["signals_max"], 12_000);
    for (given, text) in [
        ("signals_maxx=1", "no limit called `signals_maxx`"),
        ("list_page_max=0", "`list_page_max` must be between 1 and"),
        ("blob_bytes_max=18446744073709551615", "`blob_bytes_max` must be between 1 and"),
    ] {
        let mut config = Config::default();
        config.set_limit(given).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains(text), "{given}: {error}");
    }
    for (given, text) in [
        ("signals_max", "not of the form key=number"),
        ("signals_max=many", "not of the form key=number"),
        ("signals_max=-1", "not of the form key=number"),
    ] {
        let error = config.set_limit(given).unwrap_err().to_string();
        assert!(error.contains(text), "{given}: {error}");
    }
}

#[test]
fn a_search_attribute_needs_a_name_and_a_known_type() {
    let mut config = Config::default();
    config.add_search_attribute("Customer=Keyword").unwrap();
    config.check().unwrap();
    assert!(config.add_search_attribute("=Keyword").is_err());
    assert!(config.add_search_attribute("Customer").is_err());
    config.add_search_attribute("Amount=Money").unwrap();
    let error = config.check().unwrap_err().to_string();
    assert!(error.contains("`Money` is not a type"), "{error}");
}

#[test]
fn what_cannot_be_right_is_refused_before_anything_is_opened() {
    let refused = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        config.check().is_err()
    };
    assert!(refused(|c| c.shards.count = Some(0)));
    assert!(refused(|c| c.shards.count = Some(1025)));
    assert!(refused(|c| c.log.filter = "info,=".to_owned()));
    assert!(refused(|c| c.admission.requests_max = 0));
    assert!(refused(|c| c.admission.held_requests_max = 0));
    assert!(refused(|c| c.admission.connection_streams_max = 0));
    assert!(refused(|c| c.listen.http_port = c.listen.port));
    assert!(refused(|c| c.namespaces.names.push(String::new())));
    assert!(refused(|c| c.peer.certificate = "node.pem".into()));
    assert!(refused(|c| c.peer.advertised = "nowhere".to_owned()));
    assert!(refused(|c| c.peer.entries_queue_bytes_max = 1 << 20));
    assert!(refused(|c| c.peer.calls_under_way_max = 0));
    assert!(refused(|c| c.peer.calls_under_way_bytes_max = 1 << 20));
    assert!(refused(|c| c.peer.handshakes_max = 0));
}

#[test]
fn plaintext_between_nodes_is_refused_off_loopback() {
    for (ip, is_refused) in
        [("127.0.0.1", false), ("127.8.9.1", false), ("::1", false), ("::ffff:127.0.0.1", false)]
            .into_iter()
            .chain([("0.0.0.0", true), ("10.1.2.3", true), ("::", true)])
    {
        let mut config = Config::default();
        config.peer.ip = ip.parse().unwrap();
        let checked = config.check();
        assert_eq!(checked.is_err(), is_refused, "{ip}");
        if let Err(error) = checked {
            assert!(error.to_string().contains("certificate, key and ca"), "{error}");
        }
        config.peer.certificate = "node.pem".into();
        config.peer.key = "node.key".into();
        config.peer.ca = "ca.pem".into();
        if config.peer.ip.is_unspecified() {
            // Others would be told to connect to themselves.
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains("--peer-advertised"), "{error}");
            config.peer.advertised = "node1:7234".to_owned();
        }
        config.check().unwrap();
    }
}
