# What this flake uses of nixpkgs' `lib`, and a module system that is as strict.
let
  inherit (builtins)
    all
    any
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elemAt
    filter
    functionArgs
    head
    intersectAttrs
    isAttrs
    isBool
    isFunction
    isInt
    isList
    isString
    length
    listToAttrs
    map
    mapAttrs
    match
    removeAttrs
    split
    stringLength
    substring
    toJSON
    typeOf
    ;

  lib = {
    inherit
      all
      any
      attrNames
      attrValues
      concatLists
      concatMap
      concatStringsSep
      elemAt
      filter
      head
      isAttrs
      length
      listToAttrs
      mapAttrs
      ;
    concatStrings = concatStringsSep "";
    filterAttrs = keep: set: removeAttrs set (filter (name: !(keep name set.${name})) (attrNames set));
    concatMapStrings = f: list: concatStringsSep "" (map f list);
    count = wanted: list: length (filter wanted list);
    escape = list: builtins.replaceStrings list (map (char: "\\" + char) list);
    fileset = {
      unions = paths: paths;
      # What is missing is an error of nixpkgs' too.
      toSource =
        { root, fileset }:
        if all builtins.pathExists fileset then
          root
        else
          throw "fileset: no such file in ${toString fileset}";
    };
    genAttrs =
      names: f:
      listToAttrs (
        map (name: {
          inherit name;
          value = f name;
        }) names
      );
    getExe =
      package:
      "${package}/bin/${package.meta.mainProgram or (throw "${package.name} has no meta.mainProgram")}";
    hasInfix = infix: text: length (split (lib.escapeRegex infix) text) > 1;
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    escapeRegex = lib.escape [
      "\\"
      "^"
      "$"
      "."
      "+"
      "*"
      "?"
      "|"
      "("
      ")"
      "["
      "{"
      "]"
      "}"
    ];
    importTOML = path: builtins.fromTOML (builtins.readFile path);
    licenses.mit = "mit";
    mapAttrs' = f: set: listToAttrs (map (name: f name set.${name}) (attrNames set));
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    nameValuePair = name: value: { inherit name value; };
    optionalAttrs = condition: set: if condition then set else { };
    optionalString = condition: text: if condition then text else "";
    splitString = separator: text: filter isString (split (lib.escapeRegex separator) text);

    mkOption =
      declaration:
      let
        known = [
          "type"
          "default"
          "defaultText"
          "example"
          "description"
          "readOnly"
          "internal"
        ];
        unknown = filter (key: !(builtins.elem key known)) (attrNames declaration);
      in
      if unknown != [ ] then
        throw "mkOption has no ${head unknown}"
      else
        declaration // { _type = "option"; };
    mkEnableOption =
      what:
      lib.mkOption {
        type = types.bool;
        default = false;
        description = "Whether to enable ${what}.";
      };
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOverride = priority: content: {
      _type = "override";
      inherit priority content;
    };
    mkDefault = lib.mkOverride 1000;
    mkForce = lib.mkOverride 50;

    inherit evalModules types;
  };

  isA = type: value: isAttrs value && value._type or null == type;
  show = concatStringsSep ".";

  # ---- types: each merges all definitions of one option ----

  scalar = name: check: {
    inherit name check;
    merge =
      path: values:
      let
        wrong = filter (value: !(check value)) values;
      in
      if wrong != [ ] then
        throw "option ${show path} is not of type ${name}: ${typeOf (head wrong)}"
      else if any (value: value != head values) values then
        throw "option ${show path} has conflicting definitions"
      else
        head values;
  };

  # A set or a list of definitions, with what each is of.
  collection = name: check: merge: {
    inherit name check;
    merge =
      path: values:
      let
        wrong = filter (value: !(check value)) values;
      in
      if wrong != [ ] then
        throw "option ${show path} is not of type ${name}: ${typeOf (head wrong)}"
      else
        merge path values;
  };

  isPackage = value: isAttrs value && value.type or null == "derivation";
  between =
    low: high: value:
    isInt value && value >= low && value <= high;

  types = {
    bool = scalar "bool" isBool;
    str = scalar "str" isString;
    int = scalar "int" isInt;
    port = scalar "port" (between 0 65535);
    ints.positive = scalar "positive int" (value: isInt value && value > 0);
    package = scalar "package" isPackage;
    path = scalar "path" (
      value:
      isPackage value || (isString value || builtins.isPath value) && lib.hasPrefix "/" (toString value)
    );
    enum = values: scalar "one of ${toJSON values}" (value: builtins.elem value values);
    strMatching =
      pattern:
      scalar "string that matches ${pattern}" (value: isString value && match pattern value != null);
    lines = collection "lines" isString (_: values: concatStringsSep "\n" values);
    # Of options that NixOS reads and this stand-in does not.
    raw = scalar "anything" (_: true);
    nullOr = type: {
      name = "null or ${type.name}";
      check = value: value == null || type.check value;
      merge = path: values: if all (value: value == null) values then null else type.merge path values;
    };
    listOf =
      type:
      collection "list of ${type.name}" isList (
        path: values: map (value: type.merge path [ value ]) (concatLists values)
      );
    attrsOf =
      type:
      collection "attribute set of ${type.name}" isAttrs (
        path: values:
        lib.genAttrs (namesOf values) (
          name: mergeDefinitions (path ++ [ name ]) type (definitionsOf name values)
        )
      );
    submodule =
      module:
      collection "submodule" (value: isAttrs value || isFunction value) (
        path: values:
        (evalModules {
          modules = [ module ] ++ map (value: if isFunction value then value else { config = value; }) values;
          specialArgs.name = elemAt path (length path - 1);
          prefix = path;
        }).config
      );
  };

  # ---- definitions: conditions are pushed down to the leaves, and asked there ----

  # A definition of a set as plain sets, whose values are definitions.
  plain =
    value:
    if isA "if" value then
      map (mapAttrs (_: lib.mkIf value.condition)) (plain value.content)
    else if isA "merge" value then
      concatMap plain value.contents
    else if isA "override" value then
      map (mapAttrs (_: lib.mkOverride value.priority)) (plain value.content)
    else
      [ value ];

  # A definition of a leaf as those that hold, with their priorities.
  holding =
    value:
    if isA "if" value then
      if value.condition then holding value.content else [ ]
    else if isA "merge" value then
      concatMap holding value.contents
    else if isA "override" value then
      map (held: held // { inherit (value) priority; }) (holding value.content)
    else
      [
        {
          priority = 100;
          inherit value;
        }
      ];

  namesOf = sets: attrNames (builtins.foldl' (all: set: all // set) { } sets);
  definitionsOf = name: sets: concatMap (set: if set ? ${name} then [ set.${name} ] else [ ]) sets;

  strongest =
    definitions:
    let
      held = concatMap holding definitions;
      priority = builtins.foldl' (
        least: one: if one.priority < least then one.priority else least
      ) 9999 held;
    in
    map (one: one.value) (filter (one: one.priority == priority) held);

  mergeDefinitions =
    path: type: definitions:
    let
      values = strongest definitions;
    in
    if values == [ ] then
      throw "option ${show path} is used but not defined"
    else
      type.merge path values;

  # ---- modules ----

  load =
    arguments: module:
    let
      loaded = if builtins.isPath module || isString module then import module else module;
    in
    if isFunction loaded then
      # An argument without a default that there is not: Nix says so.
      loaded (
        if functionArgs loaded == { } then arguments else intersectAttrs (functionArgs loaded) arguments
      )
    else
      loaded;

  structured =
    module:
    let
      rest = removeAttrs module [
        "imports"
        "options"
        "config"
      ];
    in
    if !(module ? options || module ? config) then
      {
        options = { };
        config = rest;
      }
    else if rest != { } then
      throw "a module with `options` or `config` has ${head (attrNames rest)} beside them"
    else
      {
        options = module.options or { };
        config = module.config or { };
      };

  flatten =
    arguments: module:
    let
      loaded = load arguments module;
    in
    [ (structured loaded) ] ++ concatMap (flatten arguments) (loaded.imports or [ ]);

  declare =
    path: one: other:
    one
    // mapAttrs (
      name: value:
      if !(one ? ${name}) then
        value
      else if isA "option" value || isA "option" one.${name} then
        throw "option ${show (path ++ [ name ])} is declared twice"
      else
        declare (path ++ [ name ]) one.${name} value
    ) other;

  values =
    path: options: definitions:
    let
      sets = concatMap plain definitions;
      noSets = filter (set: !(isAttrs set)) sets;
      unknown = filter (name: !(options ? ${name})) (namesOf sets);
    in
    if noSets != [ ] then
      throw "option ${show path} is no value but a set of options"
    else if unknown != [ ] then
      throw "the option ${show (path ++ [ (head unknown) ])} does not exist"
    else
      mapAttrs (
        name: option:
        let
          here = path ++ [ name ];
          definitions = definitionsOf name sets;
          held = strongest definitions;
        in
        if !(isA "option" option) then
          values here option definitions
        else if option.readOnly or false && length held > 1 then
          throw "option ${show here} is read-only, and set more than once"
        else if held != [ ] then
          option.type.merge here held
        else if option ? default then
          # A default is of the option's type too.
          option.type.merge here [ option.default ]
        else
          throw "option ${show here} is used but not defined"
      ) options;

  evalModules =
    {
      modules,
      specialArgs ? { },
      prefix ? [ ],
    }:
    let
      arguments = specialArgs // {
        inherit lib config;
        options = declared;
      };
      flat = concatMap (flatten arguments) modules;
      declared = builtins.foldl' (declare prefix) { } (map (module: module.options) flat);
      config = values prefix declared (map (module: module.config) flat);
    in
    {
      inherit config;
      options = declared;
    };
in
lib
