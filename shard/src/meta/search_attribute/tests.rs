use super::*;

fn attributes() -> NamespaceAttributes {
    let types = [
        ("Text", Type::Text),
        ("Keyword", Type::Keyword),
        ("Int", Type::Int),
        ("Double", Type::Double),
        ("Bool", Type::Bool),
        ("Datetime", Type::Datetime),
        ("List", Type::KeywordList),
    ];
    let types = types.into_iter().map(|(name, kind)| (name.to_owned(), kind)).collect();
    let limits = Limits { search_attributes_max: 3, ..Limits::default() };
    NamespaceAttributes::new(None, Arc::new(types), Arc::new(limits))
}

fn payload(json: &str) -> Payload {
    let encoding = ("encoding".to_owned(), b"json/plain".to_vec().into());
    Payload {
        metadata: [encoding].into(),
        data: json.as_bytes().to_vec().into(),
        ..Default::default()
    }
}

fn check(fields: &[(&str, &str)]) -> Result<SearchAttributes, String> {
    let fields = fields.iter().map(|(name, json)| ((*name).to_owned(), payload(json)));
    let mut attributes = SearchAttributes { indexed_fields: fields.collect() };
    self::attributes().check(&mut attributes).map(|()| attributes)
}

#[test]
fn values_must_have_the_attributes_type() {
    let table: &[(&str, &str, bool)] = &[
        ("Keyword", r#""a""#, true),
        ("Keyword", r#"["a"]"#, true),
        ("Keyword", r#"["a","b"]"#, false),
        ("Keyword", "1", false),
        ("Keyword", "null", true),
        ("Keyword", "[]", true),
        ("Keyword", "a", false),
        ("Text", r#""some words""#, true),
        ("Int", "-5", true),
        ("Int", "1.5", false),
        ("Int", "9223372036854775808", false),
        ("Double", "1.5", true),
        ("Double", "2", true),
        ("Double", r#""2""#, false),
        ("Bool", "true", true),
        ("Bool", r#""true""#, false),
        ("List", r#"["a","b"]"#, true),
        ("List", r#""a""#, true),
        ("List", r#"["a",1]"#, false),
        ("Datetime", r#""2024-02-29T23:59:59Z""#, true),
        ("Datetime", r#""2024-02-29T23:59:59.123456789+05:30""#, true),
        ("Datetime", r#""2024-13-01T00:00:00Z""#, false),
        ("Datetime", r#""2024-01-00T00:00:00Z""#, false),
        ("Datetime", r#""2024-01-01T24:00:00Z""#, false),
        ("Datetime", r#""2024-01-01T00:00:00""#, false),
        ("Datetime", r#""2024-01-01T00:00:00.Z""#, false),
        ("Datetime", r#""yesterday""#, false),
        ("Datetime", r#""éééééééééééééééééééééé""#, false),
        ("TemporalChangeVersion", r#"["change-1"]"#, true),
        ("BuildIds", r#"["unversioned"]"#, true),
        ("WorkflowId", r#""w""#, false),
        ("Unknown", r#""x""#, false),
    ];
    for (name, json, valid) in table {
        assert_eq!(check(&[(name, json)]).is_ok(), *valid, "{name} = {json}");
    }
}

#[test]
fn the_type_is_filled_in() {
    let checked = check(&[("List", r#""a""#), ("Int", "1")]).expect("both are valid");
    let kind = |name: &str| checked.indexed_fields[name].metadata["type"].to_vec();
    assert_eq!((kind("List"), kind("Int")), (b"KeywordList".to_vec(), b"Int".to_vec()));
}

#[test]
fn sizes_and_counts_are_limited_and_the_text_names_the_attribute() {
    let long = format!("\"{}\"", "x".repeat(2 << 10));
    let refusal = check(&[("Keyword", &long)]).expect_err("too long");
    assert!(refusal.contains("Keyword") && refusal.contains("2048"), "{refusal}");
    let four = [("Text", "null"), ("Keyword", "null"), ("Int", "null"), ("Bool", "null")];
    assert!(check(&four).expect_err("too many").contains("exceeds limit 3"));
    let unknown = check(&[("Unknown", "1"), ("Bool", "true")]).expect_err("unknown");
    assert_eq!(unknown, "Namespace  has no mapping defined for search attribute Unknown");
}

/// The official server's words.
#[test]
fn a_refusal_names_the_attribute_and_shows_the_value() {
    for (name, json, text) in [
        ("Int", r#""x""#, "invalid value for search attribute Int of type Int: x"),
        ("Int", "1.5", "invalid value for search attribute Int of type Int: 1.5"),
        (
            "Keyword",
            r#"["a","b"]"#,
            "invalid value for search attribute Keyword of type Keyword: [a b]",
        ),
        ("RunId", r#""x""#, "RunId attribute can't be set in SearchAttributes"),
        (
            "TemporalWorkerDeployment",
            r#""x""#,
            "TemporalWorkerDeployment attribute can't be set in SearchAttributes",
        ),
    ] {
        assert_eq!(check(&[(name, json)]).expect_err(json), text);
    }
}
